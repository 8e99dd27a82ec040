"""Tables, figures and pages for readers, made from a summary."""
