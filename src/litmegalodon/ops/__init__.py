"""The three operators of a MEGALODON: each takes an incoming state and returns the outgoing one.

`*_end` is the state that a stretch of tokens leaves by itself, `*_merge` the one that several leave
together: for rows that several processes share.
"""

from litmegalodon.ops.cema import cema, cema_end, cema_merge
from litmegalodon.ops.chunk_attention import KeyValueState, Places, chunk_attention
from litmegalodon.ops.timestep_norm import (
    NormState,
    timestep_norm,
    timestep_norm_end,
    timestep_norm_merge,
)

__all__ = [
    "KeyValueState",
    "NormState",
    "Places",
    "cema",
    "cema_end",
    "cema_merge",
    "chunk_attention",
    "timestep_norm",
    "timestep_norm_end",
    "timestep_norm_merge",
]
