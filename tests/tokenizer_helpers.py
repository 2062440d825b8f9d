"""Small SentencePiece models, trained in a second."""

import io

import sentencepiece

# The settings of Llama 2's model.
LLAMA = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "split_digits": True,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "character_coverage": 0.99995,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
}

TEXT = """\
The quick brown fox jumps over the lazy dog; the dog, however, does not jump.
def encode(self, text: str, first: bool = True) -> list[int]:
    for number, word in enumerate(text.split()):
        if word.startswith("the") and number > 10:
            return [ord(letter) for letter in word]
Ein Bär überquert über Nacht die schöne Straße; dann schläft er.
        deeper and deeper into   spaces, 1234567890 times
"""


def train(path, vocab_size=400, **settings):
    """A model file of TEXT's words."""
    lines = [line for n in range(20) for line in [*TEXT.splitlines(), f"the word {n * 7919}"]]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=vocab_size,
        num_threads=1,
        minloglevel=2,
        **LLAMA | settings,
    )
    path.write_bytes(model.getvalue())
    return path
