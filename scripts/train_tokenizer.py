"""Train a SentencePiece tokenizer: python scripts/train_tokenizer.py data=... vocab_size=32000

`--help` lists groups and settings. The model is one like Llama 2's: text as it is, digits by
themselves, rare characters as bytes, the same ids of the special tokens.
"""

import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

from litmegalodon.runs.settings import check_values
from litmegalodon.utils import errors
from litmegalodon.utils.command_line import prepare as prepare_command_line
from litmegalodon.utils.printing import opening, say, short_path


def train_tokenizer(cfg: DictConfig) -> None:
    """Train, write the model and say how it fits held-out text."""
    output = Path(cfg.output)
    if output.exists() and not cfg.overwrite:
        raise ValueError(f"output={output}: is there already; name another, or set overwrite=true")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"output={output}: its folder {output.parent} cannot be made"
            f" ({(error.strerror or str(error)).lower()}); name another"
        ) from error
    from hydra.utils import instantiate

    from litmegalodon.data import SentencePieceTokenizer
    from litmegalodon.data.tokenizer_training import TrainingText, fit, train
    from litmegalodon.data.whole_files import write

    source = instantiate(cfg.data.source)
    text = TrainingText(source, cfg.max_bytes, cfg.data.on_error)
    began = time.monotonic()
    model = train(
        text,
        cfg.vocab_size,
        cfg.model_type,
        cfg.character_coverage,
        cfg.workers,
        Path(cfg.paths.output_dir) / "sentencepiece.log",
        say,
    )
    write(output, model)
    say(
        f"trained on {text.documents:,} documents, {text.bytes / 1e6:.1f} MB, in"
        f" {time.monotonic() - began:.1f} s"
    )
    if text.is_cut:
        say(f"max_bytes={cfg.max_bytes}: there was more text, which was not read")
    if text.broken_lines:
        say(f"lines with bytes that are no UTF-8, read without them: {text.broken_lines}")
    if text.left_out:
        say(f"places without a document: {text.left_out}")
    tokenizer = SentencePieceTokenizer(str(output))
    found = fit(tokenizer, source, cfg.max_held_out_bytes, cfg.data.on_error)
    more = ", its beginning" if found.is_cut else ""
    speed = found.bytes / 1e6 / max(found.seconds, 1e-9)
    say(f"held-out text: {found.documents:,} documents, {found.bytes / 1e6:.2f} MB{more}")
    say(f"bytes per token: {found.bytes_per_token:.3f}")
    say(f"characters with a token: {found.covered:.4%}, line ends aside")
    say(f"tokens that are bytes: {found.byte_tokens:.4%}, line ends aside")
    say(f"encoding: {speed:.1f} MB/s")
    say(
        f"{tokenizer.vocab_size} tokens, fingerprint {tokenizer.fingerprint}:"
        f" data/tokenizer=sentencepiece data.tokenizer.path={short_path(output)}"
        f" model.config.vocab_size={tokenizer.vocab_size}"
    )


@hydra.main(version_base="1.3", config_path="../configs", config_name="train_tokenizer.yaml")
def main(cfg: DictConfig) -> None:
    """Train one tokenizer."""
    with errors.running(cfg.extras.tracebacks is True):
        check_values(cfg)
        opening(cfg)
        train_tokenizer(cfg)


if __name__ == "__main__":
    with errors.composing():
        prepare_command_line(__file__)
        main()
