"""What `make soak` consists of: a run's processes, the faults, the rounds they fall in, a tally."""
