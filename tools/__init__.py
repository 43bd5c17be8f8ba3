"""Command-line tools; each module is a thin absl program."""
