"""One file per benchmark; each has `add_arguments(parser)` and `run(args) -> exit status`."""
