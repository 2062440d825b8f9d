"""TimestepNorm: group normalisation with statistics that accumulate over time."""

from litmegalodon.ops.timestep_norm.api import timestep_norm, timestep_norm_end
from litmegalodon.ops.timestep_norm.merge import timestep_norm_merge
from litmegalodon.ops.timestep_norm.state import NormState

__all__ = ["NormState", "timestep_norm", "timestep_norm_end", "timestep_norm_merge"]
