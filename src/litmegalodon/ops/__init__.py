"""The three operators of a MEGALODON: each takes an incoming state and returns the outgoing one."""

from litmegalodon.ops.cema import cema
from litmegalodon.ops.chunk_attention import KeyValueState, Places, chunk_attention
from litmegalodon.ops.timestep_norm import NormState, timestep_norm

__all__ = ["KeyValueState", "NormState", "Places", "cema", "chunk_attention", "timestep_norm"]
