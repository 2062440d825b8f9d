"""The one global order of training samples: a function of (seed, global index) and nothing else.

Rows are shuffled anew in every epoch by a keyed permutation that needs no memory: a Feistel network
permutes the numbers below a power of four, and walking along the cycle until the number is below
`size` makes it a permutation of range(size) (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002). So a run resumes from an index alone.
"""

_MASK = (1 << 64) - 1
_ROUNDS = 6


def _mix(x: int) -> int:
    """64-bit finaliser of SplitMix64: every input bit moves every output bit."""
    x &= _MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def _hash(*values: int) -> int:
    """64-bit hash of integers, the same in every process."""
    result = 0
    for value in values:
        result = _mix(result + 0x9E3779B97F4A7C15 + _mix(value + 0x632BE59BD9B4E019))
    return result


def permute(index: int, size: int, key: int) -> int:
    """Where `index` goes in the permutation of range(size) that `key` chooses."""
    if not 0 <= index < size:
        raise IndexError(f"index {index} is not in range({size})")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    round_keys = [_hash(key, i) for i in range(_ROUNDS)]
    while True:
        left, right = index >> half, index & low
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right + round_key) & low)
        index = left << half | right
        if index < size:
            return index


def row_at(global_index: int, rows: int, seed: int, shuffle: bool = True) -> tuple[int, int]:
    """Epoch and row of sample `global_index`, counted over all ranks and epochs of `rows`."""
    epoch, index = divmod(global_index, rows)
    return epoch, permute(index, rows, _hash(seed, epoch)) if shuffle else index
