"""TimestepNorm: group normalisation with statistics that accumulate over time."""

from litmegalodon.ops.timestep_norm.api import timestep_norm
from litmegalodon.ops.timestep_norm.state import NormState

__all__ = ["NormState", "timestep_norm"]
