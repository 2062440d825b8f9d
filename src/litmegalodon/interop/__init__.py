"""Weights from and to other implementations."""

from litmegalodon.interop.reference import LoadReport, load_reference_state_dict

__all__ = ["LoadReport", "load_reference_state_dict"]
