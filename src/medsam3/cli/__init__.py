"""The command line, which a person runs."""
