"""Real workloads to hold the model against, by hand: see `python -m tests.validation --help`."""
