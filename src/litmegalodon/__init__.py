"""MEGALODON language models (arXiv 2404.08801) with Lightning and Hydra."""

__version__ = "0.1.0"
