"""A run before it starts: its settings checked, its objects made, its machine examined.

Importing this package does not import torch; `instantiate` and `hparams` do.
"""
