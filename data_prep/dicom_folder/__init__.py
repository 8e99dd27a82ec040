"""A folder as a PACS exports it -> which series to use, and the table of a cohort."""
