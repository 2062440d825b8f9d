"""Causal attention inside chunks of fixed length, rotary positions restarting in each chunk."""

from litmegalodon.ops.chunk_attention.api import chunk_attention
from litmegalodon.ops.chunk_attention.places import Places, bounds, locate
from litmegalodon.ops.chunk_attention.state import KeyValueState

__all__ = ["KeyValueState", "Places", "bounds", "chunk_attention", "locate"]
