"""The command line: what happens around composing, checking and running an experiment."""
