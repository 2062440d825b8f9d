"""Many processes: how a model is sharded, and the Lightning strategy that runs and saves it."""

from litmegalodon.parallel.parallelize import parallelize, shard_rows
from litmegalodon.parallel.strategy import ShardedStrategy

__all__ = ["ShardedStrategy", "parallelize", "shard_rows"]
