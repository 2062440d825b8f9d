"""Reading many texts of which some begin alike: what they share is read once.

The texts are laid out as a tree whose nodes are stretches of tokens; a node is read from the memory
at its parent's end. What is ready to be read lies on a stack, so that few memories are alive at a
time, and is read several rows together. Rows of unequal length are not padded: the shorter ones
leave the batch. Continuations are, to the end of a piece at most.

Shapes: B rows, L tokens, V vocabulary entries.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from litmegalodon.models import Megalodon, MegalodonState

# Beginnings that are shorter are read again: a call of the model costs as much as some tokens.
SHARED_LEAST = 32
# Logits that are held at a time while continuations are scored, 256 MB.
LOGITS = 1 << 26

Memory = MegalodonState | None


@dataclass
class Node:
    """A place in the tree: its text's first `depth` tokens, and which texts end there."""

    text: np.ndarray
    depth: int
    ends: list[int] = field(default_factory=list)
    children: list["Node"] = field(default_factory=list)


def tree_of(texts: Sequence[np.ndarray]) -> Node:
    """The tree of token sequences, whose root is nothing; equal ones end at one node."""
    by_tokens: dict[bytes, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        # Big-endian bytes sort as the numbers do.
        by_tokens[np.asarray(text).astype(">u4").tobytes()].append(i)
    root = Node(np.empty(0, np.int64), 0)
    path, before = [root], root.text
    for tokens in sorted(by_tokens):
        text = np.frombuffer(tokens, ">u4").astype(np.int64)
        common, last = _common(before, text), None
        while path[-1].depth > common:
            last = path.pop()
        if path[-1].depth < common:
            middle = Node(text, common, children=[last])
            path[-1].children[-1] = middle
            path.append(middle)
        if len(text):
            path[-1].children.append(Node(text, len(text)))
            path.append(path[-1].children[-1])
        path[-1].ends, before = by_tokens[tokens], text
    return root


def _common(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def _worth_reading(node: Node) -> list[Node]:
    """The next nodes below one at which it is worth to stop, in order."""
    found, waiting = [], node.children[::-1]
    while waiting:
        child = waiting.pop()
        if child.ends or child.depth - node.depth >= SHARED_LEAST:
            found.append(child)
        else:
            waiting += child.children[::-1]
    return found


class SharedReader:
    """Reads and scores many texts with one model.

    Args:
        model: a Megalodon: tokens, state, last_only -> logits, state.
        batch_size: rows that are read together: memory grows with it.
        piece_tokens: tokens of a row that go through the model at once.

    Attributes:
        tokens_read: tokens that went through the model, padding not counted.
    """

    def __init__(self, model: Megalodon, batch_size: int = 8, piece_tokens: int = 4096) -> None:
        self.model, self.batch_size, self.piece_tokens = model, batch_size, piece_tokens
        self.tokens_read = 0

    def read(self, texts: Sequence[np.ndarray]) -> Iterator[tuple[list[int], Memory, Tensor]]:
        """Read texts, in an order of their own.

        Returns:
            the indices of equal texts, the memory after them, and the logits [V] of what follows;
            of texts without a token None and an empty tensor.
        """
        root = tree_of(texts)
        if root.ends:
            yield root.ends, None, torch.empty(0)
        ready: list[tuple[Node, Node, Memory]] = [
            (root, node, None) for node in _worth_reading(root)[::-1]
        ]
        while ready:
            batch = ready[-self.batch_size :]
            del ready[-self.batch_size :]
            stretches = [node.text[above.depth : node.depth] for above, node, _ in batch]
            ends = self._advance(stretches, [memory for *_, memory in batch])
            for (_, node, _), (memory, logits) in zip(batch, ends, strict=True):
                ready += [(node, child, memory) for child in _worth_reading(node)[::-1]]
                if node.ends:
                    yield node.ends, memory, logits

    def score(
        self, requests: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[tuple[int, float, bool]]:
        """Score continuations after contexts of at least a token.

        Returns:
            index of a request (context, continuation), log-likelihood in nats of the continuation,
            and whether each of its tokens is the likeliest one, as soon as they are known.
        """
        waiting: list[tuple[int, Memory, np.ndarray, float, bool]] = []
        for equal, memory, logits in self.read([context for context, _ in requests]):
            likely = logits.log_softmax(-1)
            best = int(likely.argmax())
            for i in equal:
                continuation = requests[i][1]
                if not len(continuation):
                    yield i, 0.0, True
                    continue
                first = int(continuation[0])
                told = (float(likely[first]), best == first)
                if len(continuation) == 1:
                    yield i, *told
                else:
                    waiting.append((i, memory, continuation, *told))
            while len(waiting) >= self.batch_size:
                yield from self._scored(waiting[: self.batch_size])
                del waiting[: self.batch_size]
        if waiting:
            yield from self._scored(waiting)

    def _advance(
        self, stretches: Sequence[np.ndarray], memories: Sequence[Memory]
    ) -> list[tuple[MegalodonState, Tensor]]:
        """Read rows from their memories: for each the memory at its end and the logits there."""
        found: list[Any] = [None] * len(stretches)
        rows, done, memory = list(range(len(stretches))), 0, self._joined(memories)
        while rows:
            step = min(min(len(stretches[i]) for i in rows) - done, self.piece_tokens)
            tokens = np.stack([stretches[i][done : done + step] for i in rows])
            logits, memory = self._call(tokens, memory, last_only=True)
            self.tokens_read += tokens.size
            done += step
            going = []
            for place, i in enumerate(rows):
                if len(stretches[i]) > done:
                    going.append(place)
                else:
                    found[i] = (self._row(memory, place), logits[place, -1])
            if going and len(going) < len(rows):
                memory = memory.select(going)
            rows = [rows[place] for place in going]
        return found

    def _scored(
        self, waiting: Sequence[tuple[int, Memory, np.ndarray, float, bool]]
    ) -> Iterator[tuple[int, float, bool]]:
        """Score what follows the first tokens of continuations.

        A piece is padded to the longest of them; those that end in it leave the batch.
        """
        indices, memories, texts, likelihoods, greedy = map(list, zip(*waiting, strict=True))
        rows, start, memory = list(range(len(texts))), 0, self._joined(memories)
        vocabulary = self.model.config.num_outputs
        while rows:
            longest = max(len(texts[i]) for i in rows) - 1 - start
            size = min(self.piece_tokens, max(1, LOGITS // (len(rows) * vocabulary)), longest)
            tokens = np.zeros((len(rows), size + 1), np.int64)
            for row, i in zip(tokens, rows, strict=True):
                part = texts[i][start : start + size + 1]
                row[: len(part)] = part
            logits, memory = self._call(tokens[:, :-1], memory)
            targets = torch.from_numpy(tokens[:, 1:]).to(logits.device)
            found = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0].double().cpu()
            hits = (logits.argmax(-1) == targets).cpu()
            start += size
            going = []
            for place, i in enumerate(rows):
                count = min(size, len(texts[i]) - 1 - (start - size))
                likelihoods[i] += float(found[place, :count].sum())
                greedy[i] &= bool(hits[place, :count].all())
                self.tokens_read += count
                if len(texts[i]) - 1 > start:
                    going.append(place)
            if going and len(going) < len(rows):
                memory = memory.select(going)
            rows = [rows[place] for place in going]
        yield from zip(indices, likelihoods, greedy, strict=True)

    @torch.no_grad()
    def _call(
        self, tokens: np.ndarray, memory: Memory, last_only: bool = False
    ) -> tuple[Tensor, MegalodonState]:
        read = torch.from_numpy(tokens).to(self.model.embed.weight.device)
        return self.model(read, memory, last_only=last_only)

    def _joined(self, memories: Sequence[Memory]) -> Memory:
        if all(memory is None for memory in memories):
            return None
        if len(memories) == 1:
            return memories[0]
        fresh = self.model.fresh_state()
        return MegalodonState.join([fresh if memory is None else memory for memory in memories])

    def _row(self, memory: MegalodonState, place: int) -> MegalodonState:
        if memory.batch == 1:
            return memory
        return memory.row(place, self.model.config.chunk_size)
