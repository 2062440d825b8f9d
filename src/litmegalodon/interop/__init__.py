"""Weights from and to other implementations."""

from litmegalodon.interop.importing import Foreign, as_model, read_foreign
from litmegalodon.interop.reference import LoadReport, load_reference_state_dict

__all__ = ["Foreign", "LoadReport", "as_model", "load_reference_state_dict", "read_foreign"]
