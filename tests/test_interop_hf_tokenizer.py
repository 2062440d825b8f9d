"""The tokenizer of an export gives the ids and texts that this project's own gives."""

import json

import pytest
import transformers
from transformers import AutoTokenizer

import litmegalodon.interop.hf as hf
from inference_helpers import TOKENIZER
from litmegalodon.data import SentencePieceTokenizer
from tokenizer_helpers import TEXT, train

TEXTS = (
    "def main():",
    "  two  spaces, \u00e9\u6f22\U0001f600 and a tab\t",
    "<s> <bos> </s> <eos> <unk> <0x41>",
    "\r\n\n",
    " ",
    "\u2581a\u2581",
    TEXT,
)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    return train(tmp_path_factory.mktemp("sp") / "tokenizer.model")


def tokenizers(sentencepiece):
    yield TOKENIZER, hf.MegalodonTokenizer()
    yield SentencePieceTokenizer(str(sentencepiece)), hf.MegalodonTokenizer(str(sentencepiece))


def test_the_tokenizer_gives_our_own_ids_and_text_for_every_text(sentencepiece, tmp_path):
    for own, theirs in tokenizers(sentencepiece):
        theirs.save_pretrained(tmp_path / own.fingerprint)
        again = AutoTokenizer.from_pretrained(tmp_path / own.fingerprint)
        assert type(again) is hf.MegalodonTokenizer
        for text in TEXTS:
            ids = own.encode(text).tolist()
            for each in (theirs, again):
                assert each(text).input_ids == [own.bos_id, *ids]
                assert each(text, add_special_tokens=False).input_ids == ids
                assert each.decode([own.bos_id, *ids], skip_special_tokens=True) == own.decode(ids)
                assert each.decode(ids) == own.decode(ids)
        assert len(again) == again.vocab_size == own.vocab_size
        assert (again.bos_token_id, again.eos_token_id) == (own.bos_id, own.eos_id)
        assert again.decode([own.bos_id, own.eos_id]) == again.bos_token + again.eos_token
        assert again.convert_tokens_to_ids(again.convert_ids_to_tokens(ids)) == ids
        # A token of a user's own, as fine-tuning adds one.
        again.add_special_tokens({"pad_token": "<pad>"})
        pad = again.pad_token_id
        assert pad == own.vocab_size
        assert again.decode([pad, *ids, own.eos_id]) == "<pad>" + own.decode(ids) + again.eos_token
        assert again.decode([pad, *ids], skip_special_tokens=True) == own.decode(ids)
        with pytest.raises(ValueError, match="tokenizer"):
            again.decode([pad + 1])


def test_another_tokenizer_than_the_model_s_is_refused(sentencepiece, tmp_path):
    hf.MegalodonTokenizer(str(sentencepiece)).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match=r"kind=sentencepiece: .*give it the tokenizer.model"):
        AutoTokenizer.from_pretrained(tmp_path)
    train(tmp_path / "tokenizer.model", vocab_size=390)
    with pytest.raises(ValueError, match=r"fingerprint=.*was trained with that"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_why_transformers_own_tokenizer_of_llama_is_not_taken(sentencepiece):
    """It gives other ids: once it does not, ours can go."""
    (sentencepiece.parent / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer"})
    )
    theirs = transformers.LlamaTokenizer.from_pretrained(sentencepiece.parent)
    own = SentencePieceTokenizer(str(sentencepiece))
    text = "  two leading spaces"
    assert theirs(text, add_special_tokens=False).input_ids != own.encode(text).tolist()
