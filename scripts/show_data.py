"""Look at data before training on it: python scripts/show_data.py data=... [show.rows=5]

Prints rows as they are trained on, how long documents are, places that give none, and held-out
documents that are also trained on; draws the lengths.
"""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from litmegalodon.runs.settings import check_settings
from litmegalodon.utils import errors
from litmegalodon.utils.command_line import prepare
from litmegalodon.utils.printing import say, short_path

if TYPE_CHECKING:
    from litmegalodon.data import Source
    from litmegalodon.data.survey import Survey


def check_show(cfg: DictConfig) -> None:
    """ValueError if a setting of show is out of range."""
    for name, least in {"rows": 0, "characters": 20, "documents": 1}.items():
        value = cfg.show[name]
        if value is None and name == "documents":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"show.{name}={value}: must be a whole number, at least {least}")


def show(cfg: DictConfig) -> None:
    """Print and draw what the data of a configuration are."""
    from hydra.utils import instantiate

    from litmegalodon.data.mixture import parts_of
    from litmegalodon.data.survey import draw_lengths, survey

    datamodule = instantiate(cfg.data)
    source, tokenizer = datamodule.source, datamodule.tokenizer
    for part, _ in parts_of(source):
        if hasattr(part, "check_tokenizer"):
            part.check_tokenizer(tokenizer)
    surveys = {
        split: survey(source, tokenizer, split, cfg.show.documents) for split in ("train", "val")
    }
    say(f"fingerprint {source.fingerprint}, tokenizer {tokenizer.fingerprint}")
    for split, found in surveys.items():
        say(describe(split, found))
    say_left_out(source, surveys)
    say_copies(surveys)
    if any(found.lengths for found in surveys.values()):
        path = Path(cfg.paths.output_dir) / "lengths.png"
        draw_lengths(surveys, cfg.data.seq_len, path)
        say(f"lengths of documents: {short_path(path)}")
    if cfg.show.rows:
        show_rows(datamodule, cfg.show.rows, cfg.show.characters)


def describe(split: str, found: "Survey") -> str:
    """A line on a split's documents and their lengths."""
    name = {"train": "to train on", "val": "held out"}[split]
    first = "" if found.complete else "the first "
    if not found.lengths:
        return f"{name}: no documents"
    lengths = sorted(found.lengths)
    total = sum(lengths)
    line = (
        f"{name}: {first}{len(lengths):,} documents, {total:,} tokens; tokens of a document:"
        f" {lengths[0]:,} at least, {lengths[len(lengths) // 2]:,} median, {lengths[-1]:,} at most"
    )
    # Two tokens of each document are its boundaries.
    texts = total - 2 * len(lengths)
    return f"{line}; {found.text_bytes / texts:.2f} bytes a token" if found.text_bytes else line


def say_left_out(source: "Source", surveys: dict[str, "Survey"]) -> None:
    """Say what was not taken, and name the first errors."""
    files, size = source.left_out["files"], source.left_out["bytes"]
    # Only a source of files of any kind knows which kinds it does not read.
    endings = getattr(source, "left_out_endings", {})
    kinds = ", ".join(f"{ending}: {count:,}" for ending, count in sorted(endings.items()))
    empty = sum(found.left_out - found.errors for found in surveys.values())
    broken = sum(found.errors for found in surveys.values())
    say(
        f"left out: {files:,} files of {size:,} bytes{f' ({kinds})' if kinds else ''}; {empty:,}"
        f" empty places, {broken:,} errors"
    )
    for found in surveys.values():
        for place in found.named:
            say(f"  {place.where}: {place.reason}")


def say_copies(surveys: dict[str, "Survey"]) -> None:
    """Say how many held-out documents are trained on."""
    copies = surveys["val"].copies_in(surveys["train"])
    among = "" if all(found.complete for found in surveys.values()) else " among these"
    say(f"held-out documents that are also trained on, token for token{among}: {len(copies):,}")
    for held_out, trained in copies[:3]:
        say(f"  {held_out} is {trained}")


def show_rows(datamodule: Any, number: int, characters: int) -> None:
    """Print the first rows that training reads."""
    from litmegalodon.data.row_text import row_text
    from litmegalodon.data.store import IGNORED

    parts = ("tokens", "targets", "resets")
    rows = (
        row
        for batch in datamodule.train_dataloader()
        for row in zip(*(batch[part].tolist() for part in parts), strict=True)
    )
    for i, (tokens, targets, resets) in enumerate(islice(rows, number), 1):
        predicted = sum(target != IGNORED for target in targets)
        say(f"\nrow {i}: {len(tokens):,} tokens, {predicted:,} predicted, {sum(resets):,} resets")
        for line in row_text(tokens, targets, resets, datamodule.tokenizer, characters):
            say(line)


@hydra.main(version_base="1.3", config_path="../configs", config_name="show_data.yaml")
def main(cfg: DictConfig) -> None:
    """Show one source."""
    with errors.running(cfg.extras.tracebacks is True):
        check_settings(cfg)
        check_show(cfg)
        show(cfg)


if __name__ == "__main__":
    with errors.composing():
        prepare(__file__)
        main()
