"""Many runs of one command, each in a process and a folder of its own; finished ones are kept."""
