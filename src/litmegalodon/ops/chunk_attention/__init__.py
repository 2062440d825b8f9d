"""Causal attention inside chunks of fixed length, with rotary positions that restart in each chunk."""

from litmegalodon.ops.chunk_attention.api import chunk_attention
from litmegalodon.ops.chunk_attention.state import KeyValueState

__all__ = ["KeyValueState", "chunk_attention"]
