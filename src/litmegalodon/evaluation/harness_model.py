"""A model as lm-evaluation-harness asks it: needs the extra `eval`.

from lm_eval import simple_evaluate
simple_evaluate(model=HarnessModel(*load_model("last")), tasks=["hellaswag"])
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from litmegalodon.evaluation.shared_reading import SharedReader
from litmegalodon.inference import Reader, TextState, generate_together
from litmegalodon.models import Megalodon

# What a task may say of how its texts are drawn, beside until, max_gen_toks and do_sample.
DRAWING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
# The same text whatever they are, with these values.
NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "early_stopping": False, "use_cache": True}


class HarnessModel(TemplateLM):
    """Scores and continues texts of any length, each of which opens with BOS.

    Contexts that begin alike, for 32 tokens or more, are read once; so is a context that several
    continuations follow. No text is cut: there is no longest context.

    Args:
        model: the network.
        tokenizer: that of the network.
        batch_size: rows that are read or written together.
        piece_tokens: tokens of a row that go through the model at once.
        max_gen_toks: tokens that a text has at most where its task does not say.
        seed: of the texts that a task wants drawn at random.
    """

    def __init__(
        self,
        model: Megalodon,
        tokenizer: Any,
        batch_size: int = 8,
        piece_tokens: int = 4096,
        max_gen_toks: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._tokenizer, self._max_gen_toks, self._seed = tokenizer, max_gen_toks, seed
        self._reader = SharedReader(model, batch_size, piece_tokens)
        self._written = 0

    @property
    def tokens_read(self) -> int:
        """Tokens that went through the model, those that it wrote included."""
        return self._reader.tokens_read + self._written

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self._tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        return self._tokenizer.fingerprint

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """A text's tokens without BOS, which `_opened` puts before."""
        return self._tokenizer.encode(string.encode()).tolist()

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihoods of continuations in nats, and whether greedy decoding writes them."""
        return super().loglikelihood(requests, disable_tqdm or not sys.stderr.isatty())

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        pairs = [(self._opened(c), np.array(t, np.int64)) for _, c, t in requests]
        found: list[Any] = [None] * len(pairs)
        with _bar(len(pairs), "scoring", disable_tqdm) as bar:
            for i, likelihood, greedy in self._reader.score(pairs):
                found[i] = (likelihood, greedy)
                bar.update()
        return found

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihoods of whole texts, each token after all that stand before it."""
        texts = [self.tok_encode(*request.args) for request in requests]
        # Those that are read together are about as long.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        scored = self._loglikelihood_tokens([(("", ""), [], texts[i]) for i in order], disable_tqdm)
        found = dict(zip(order, scored, strict=True))
        return [found[i][0] for i in range(len(texts))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts that follow contexts, up to the first stop string or the document's end.

        Raises:
            ValueError: a task asks for a way of drawing that is not known here.
        """
        tokens = [self._opened(self.tok_encode(request.args[0])) for request in requests]
        texts = [""] * len(requests)
        # Requests that are written together, and how often the same one came before.
        waiting: dict[tuple[str, int], list[tuple[int, Reader]]] = defaultdict(list)
        repeats = _numbers_among_equals(requests)
        with _bar(len(requests), "writing", disable_tqdm) as bar:

            def write(key: tuple[str, int]) -> None:
                indices, readers = zip(*waiting.pop(key), strict=True)
                settings = self._drawing(requests[indices[0]].args[1])
                before = sum(reader.state.tokens for reader in readers)
                parts = generate_together(readers, seed=self._seed + key[1], **settings)
                for place, text in parts:
                    texts[indices[place]] += text
                self._written += sum(reader.state.tokens for reader in readers) - before
                bar.update(len(indices))

            # The last token is read when the first one is drawn.
            for equal, memory, _ in self._reader.read([text[:-1] for text in tokens]):
                for i in equal:
                    reader = Reader(self._reader.model, self._tokenizer)
                    reader.state = TextState(memory, int(tokens[i][-1]))
                    key = (repr(requests[i].args[1]), repeats[i])
                    waiting[key].append((i, reader))
                    if len(waiting[key]) == self._reader.batch_size:
                        write(key)
            for key in list(waiting):
                write(key)
        return texts

    def _opened(self, context: Sequence[int]) -> np.ndarray:
        bos = self._tokenizer.bos_id
        opening = [] if len(context) and context[0] == bos else [bos]
        return np.array([*opening, *context], np.int64)

    def _drawing(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `generate_together` for a task's settings."""
        given = dict(normalize_gen_kwargs(settings, self._max_gen_toks))
        stop = [text for text in given.pop("until") if text]
        drawing = {"max_new_tokens": given.pop("max_gen_toks"), "stop": stop}
        if given.pop("do_sample"):
            given.setdefault("temperature", 1.0)
        else:
            # Where the likeliest token is taken, the other settings have no effect.
            given = {name: value for name, value in given.items() if name not in DRAWING}
            drawing["temperature"] = 0
        for name in DRAWING:
            if name in given:
                drawing[name] = given.pop(name)
        unknown = {n: v for n, v in given.items() if NEUTRAL.get(n, ...) != v}
        if unknown:
            named = ", ".join(f"{name}={value}" for name, value in unknown.items())
            raise ValueError(
                f"generation_kwargs of a task: {named} is not known here; there are until,"
                f" max_gen_toks, do_sample, {', '.join(DRAWING)}"
            )
        return drawing


def _numbers_among_equals(requests: Sequence[Instance]) -> list[int]:
    """How many equal requests stand before each one: repeats are drawn with other numbers."""
    seen: Counter[str] = Counter()
    numbers = []
    for request in requests:
        name = repr(request.args)
        numbers.append(seen[name])
        seen[name] += 1
    return numbers


def _bar(total: int, what: str, disable: bool) -> tqdm:
    hidden = disable or not sys.stderr.isatty()
    return tqdm(total=total, desc=what, unit=" texts", leave=False, disable=hidden)
