"""Many processes: how a model is sharded over them, and the Lightning strategy that starts and checkpoints them."""

from litmegalodon.parallel.parallelize import parallelize
from litmegalodon.parallel.strategy import ShardedStrategy

__all__ = ["ShardedStrategy", "parallelize"]
