"""This project's tokenizers in transformers' form: the same ids for every text.

transformers' own tokenizer of SentencePiece models (LlamaTokenizer) is another implementation,
which gives other ids for some texts (docs/interop.md), so the model file is read by this project's.
"""

from pathlib import Path
from typing import Any

from transformers import AddedToken, PreTrainedTokenizer

from litmegalodon.data import ByteTokenizer, SentencePieceTokenizer
from litmegalodon.interop.exported import TOKENIZER_MODEL

# Names of the boundary tokens of bytes.
BOUNDARIES = {256: "<bos>", 257: "<eos>"}


class MegalodonTokenizer(PreTrainedTokenizer):
    """Bytes, or a SentencePiece model where there is a file tokenizer.model.

    A text is opened by BOS; its characters are text, also where they spell a special token.

    Raises:
        ValueError: the file is no SentencePiece model, or not the one that is asked for.
    """

    vocab_files_names = {"vocab_file": TOKENIZER_MODEL}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str | None = None, **kwargs: Any) -> None:
        self.own = ByteTokenizer() if vocab_file is None else SentencePieceTokenizer(vocab_file)
        kind = "bytes" if vocab_file is None else "sentencepiece"
        facts = {"kind": kind, "fingerprint": self.own.fingerprint}
        for name, value in facts.items():
            if kwargs.get(name, value) != value:
                raise ValueError(
                    f"{name}={kwargs[name]}: the model was trained with that, and its files make a"
                    f" tokenizer of {name} {value}; give it the {TOKENIZER_MODEL} that it had"
                )
        self._names = self._name_all()
        self._ids = {name: i for i, name in enumerate(self._names)}
        bos, eos = (
            AddedToken(self._names[i], special=True, normalized=False)
            for i in (self.own.bos_id, self.own.eos_id)
        )
        defaults = {
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": eos,
            "padding_side": "left",
            "split_special_tokens": True,
            "special_tokens_pattern": "bos",
            "clean_up_tokenization_spaces": False,
        }
        super().__init__(**defaults | kwargs | facts, vocab_file=vocab_file)

    @property
    def vocab_size(self) -> int:
        return self.own.vocab_size

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self.own.decode(self._ids[token] for token in tokens)

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write tokenizer.model, if it is one."""
        if isinstance(self.own, ByteTokenizer):
            return ()
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = Path(save_directory) / f"{prefix}{TOKENIZER_MODEL}"
        path.write_bytes(self.own.model)
        return (str(path),)

    def _name_all(self) -> list[str]:
        """What each id is called among tokens; no two alike."""
        if isinstance(self.own, ByteTokenizer):
            return [BOUNDARIES.get(i, f"<0x{i:02X}>") for i in range(self.own.vocab_size)]
        return self.own.names

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [self._names[i] for i in self.own.encode(text).tolist()]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < len(self._names):
            raise ValueError(f"token {index}: the tokenizer has {len(self._names)} ids")
        return self._names[index]

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [int(token_ids)] if isinstance(token_ids, int) else [int(i) for i in token_ids]
        # BOS, EOS and what a user has added, as a token for padding.
        added = self.added_tokens_decoder
        if skip_special_tokens:
            ids = [i for i in ids if i not in added or not added[i].special]
        text, run = "", []
        for i in ids:
            if i in added:
                text += (self.own.decode(run) if run else "") + added[i].content
                run = []
            else:
                run.append(i)
        return text + (self.own.decode(run) if run else "")
