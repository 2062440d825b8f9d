"""Documents as tokens that can be read anywhere: what rows in a random order are cut from.

    tokens   BOS prompt text EOS | BOS text EOS | ...     documents end to end

Shapes: N tokens of all documents.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from litmegalodon.data.documents import Document, LeftOut
from litmegalodon.data.tokenizer import Tokenizer, pieces

IGNORED = -100


class TokenStore(Protocol):
    """The tokens of documents end to end, boundary tokens included, N in all.

    `num_bytes` counts the predicted text of the documents, `num_targets` the predicted tokens,
    which are those of the text and EOS.
    """

    num_documents: int
    num_tokens: int
    num_bytes: int
    num_targets: int

    def document_of(self, token: int) -> int:
        """Number of the document that holds token number `token`."""

    def start(self, document: int) -> int:
        """Number of a document's first token, its BOS; N for `num_documents`."""

    def prompt(self, document: int) -> int:
        """How many of a document's first tokens are not predicted: BOS and its prompt."""

    def tokens(self, first: int, stop: int) -> np.ndarray:
        """The tokens from number `first` to before `stop`, integers [stop - first]."""


class MemoryStore:
    """A TokenStore in memory, two bytes a token for vocabularies up to 65,536, else four."""

    def __init__(self, documents: Iterable[Document], tokenizer: Tokenizer) -> None:
        dtype = token_dtype(tokenizer.vocab_size)
        parts, lengths, prompts = [np.empty(0, dtype)], [], []
        self.num_bytes = 0
        for document in documents:
            length = prompt = 0
            for ids, unpredicted, _ in tokenized(document, tokenizer):
                parts.append(ids.astype(dtype))
                length += len(ids)
                prompt += unpredicted
            lengths.append(length)
            prompts.append(prompt)
            self.num_bytes += len(document.text)
        self._tokens = np.concatenate(parts)
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._prompts = np.array(prompts, dtype=np.int64)
        self.num_documents = len(lengths)
        self.num_tokens = len(self._tokens)
        self.num_targets = self.num_tokens - int(self._prompts.sum())

    def document_of(self, token: int) -> int:
        return int(np.searchsorted(self._starts, token, side="right")) - 1

    def start(self, document: int) -> int:
        return int(self._starts[document])

    def prompt(self, document: int) -> int:
        return int(self._prompts[document])

    def tokens(self, first: int, stop: int) -> np.ndarray:
        return self._tokens[first:stop]


def token_dtype(vocab_size: int) -> type[np.integer]:
    """The smallest type of integers that stores of tokens use."""
    return np.uint16 if vocab_size <= 1 << 16 else np.int32


def tokenized(
    document: Document, tokenizer: Tokenizer, skip: int = 0
) -> Iterator[tuple[np.ndarray, int, bool]]:
    """A document's tokens piece by piece: (ids int64 [n], how many first ones are not predicted,
    whether the document ends with them).

    The first piece opens with BOS and the prompt, the last one ends with EOS. `skip` leaves out as
    many pieces without tokenising them.
    """
    texts = pieces(document.text)
    text: bytes | None = next(texts, b"")
    number = 0
    while text is not None:
        following = next(texts, None)
        if number >= skip:
            ids = [tokenizer.encode_piece(text, first=number == 0)] if text else []
            if number == 0:
                opening = [np.array([tokenizer.bos_id])]
                if document.prompt:
                    opening.append(tokenizer.encode(document.prompt))
                ids = opening + ids
            if following is None:
                ids.append(np.array([tokenizer.eos_id]))
            unpredicted = sum(map(len, opening)) if number == 0 else 0
            yield np.concatenate(ids), unpredicted, following is None
        number, text = number + 1, following


class OnError:
    """What data.on_error asks for at a place that gives no document: stop, or count and go on."""

    CHOICES = ("raise", "skip")
    # Messages of one shard after which the rest is only counted.
    SAID = 5

    def __init__(self, choice: str) -> None:
        if choice not in self.CHOICES:
            raise ValueError(f"data.on_error={choice}: must be {' or '.join(self.CHOICES)}")
        self.choice = choice
        self._said = 0

    def __call__(self, item: LeftOut) -> int:
        """Note a place that is left out; how many to count it as, 1, or 0 where it was told before.

        ValueError where it is an error and these stop the run.
        """
        if item.error and self.choice == "raise":
            raise ValueError(
                f"{item.where}: {item.reason}; mend it, or leave out and count such places with"
                " data.on_error=skip"
            )
        if item.again:
            return 0
        self._said += 1
        if item.error and self._said <= self.SAID:
            more = "; further ones are only counted" if self._said == self.SAID else ""
            print(f"data: left out {item.where}: {item.reason}{more}", flush=True)
        return 1
