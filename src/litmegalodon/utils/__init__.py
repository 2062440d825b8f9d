"""Small helpers that stand below everything: the command line, its messages, files and memory."""
