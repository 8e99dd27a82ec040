"""One module per verb of `osteojax`, and packages that verbs and Python users call."""
