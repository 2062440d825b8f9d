"""Tokenise a corpus once: python scripts/prepare_corpus.py data=... output=... [shard=i/n]

`--help` lists groups and settings. Run it again after whatever stopped it: finished files are kept.
On several machines each takes its part, in any order (SLURM: shard=$SLURM_ARRAY_TASK_ID/16), and
the last one to end writes the manifest.
"""

import re
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from litmegalodon.runs.settings import check_values
from litmegalodon.utils import errors
from litmegalodon.utils.command_line import prepare as prepare_command_line
from litmegalodon.utils.printing import opening, say, short_path

CONFIGS = Path(__file__).parents[1] / "configs"

# Seconds between two lines on how far it has come.
EVERY = 5.0


def machine_of(shard: str) -> tuple[int, int]:
    """`i/n` as numbers; ValueError where it is none."""
    found = re.fullmatch(r"(\d+)/(\d+)", str(shard))
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"shard={shard}: must be i/n with i from 1 to n, as 3/16")
    return int(found[1]), int(found[2])


def default_vocab_size() -> int:
    """Of the model where nothing else is set."""
    return OmegaConf.load(CONFIGS / "model" / "megalodon.yaml").config.vocab_size


def prepare_corpus(cfg: DictConfig) -> None:
    """Do this machine's part of the work."""
    machine = machine_of(cfg.shard)
    # pyarrow takes a moment to import: only after the settings are checked.
    from hydra.utils import instantiate

    from litmegalodon.data.manifest import COUNTS
    from litmegalodon.data.prepared import PreparedCorpus
    from litmegalodon.data.preparing import Finished, prepare

    folder = Path(cfg.output)
    began = said = time.monotonic()
    kept = 0
    new = dict.fromkeys(COUNTS, 0)

    def done(finished: Finished, number: int, of: int) -> None:
        nonlocal said, kept
        kept += finished.kept
        if not finished.kept:
            for name in COUNTS:
                new[name] += finished.counts[name]
        now = time.monotonic()
        if number == of or now - said > EVERY:
            said = now
            speed = new["bytes"] / 1e6 / (now - began)
            say(
                f"{number} of {of} files, {kept} of them from before; new: {new['documents']:,}"
                f" documents, {new['tokens']:,} tokens, {new['bytes'] / 1e6:.1f} MB,"
                f" {speed:.1f} MB/s"
            )

    missing = prepare(
        instantiate(cfg.data.source),
        instantiate(cfg.data.tokenizer),
        folder,
        machine=machine,
        workers=cfg.workers,
        units=dict(cfg.units),
        on_error=cfg.data.on_error,
        made_from={"source": OmegaConf.to_container(cfg.data.source, resolve=True)},
        done=done,
    )
    if missing:
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        say(f"left to other machines: {len(missing)} files ({named})")
        return
    corpus = PreparedCorpus(str(folder))
    for split, totals in corpus.manifest["totals"].items():
        say(
            f"{split}: {totals['documents']:,} documents, {totals['tokens']:,} tokens,"
            f" {totals['bytes']:,} bytes; places without a document: {totals['left_out_places']}"
            f" ({totals['left_out_errors']} errors)"
        )
    model = corpus.manifest["tokenizer"]["model"]
    path = short_path(folder)
    tokenizer = f" data/tokenizer=sentencepiece data.tokenizer.path={path}/{model}" if model else ""
    vocab_size = corpus.manifest["tokenizer"]["vocab_size"]
    if vocab_size > default_vocab_size():
        tokenizer += f" model.config.vocab_size={vocab_size}"
    say(
        f"complete, fingerprint {corpus.fingerprint}: data=prepared{tokenizer}"
        f" data.source.folder={path}"
    )


@hydra.main(version_base="1.3", config_path="../configs", config_name="prepare_corpus.yaml")
def main(cfg: DictConfig) -> None:
    """Prepare one corpus."""
    with errors.running(cfg.extras.tracebacks is True):
        check_values(cfg)
        opening(cfg)
        prepare_corpus(cfg)


if __name__ == "__main__":
    with errors.composing():
        prepare_command_line(__file__)
        main()
