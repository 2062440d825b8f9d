"""Write text with a checkpoint: python src/generate.py ckpt_path=last prompt="..." [key=value ...]

Reads prompt=, prompt_file= or standard input. `--help` lists the settings.
"""

import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from litmegalodon.inference.prompts import standard_input
from litmegalodon.inference.terminal import ReadingBar, TextOutput, closed_pipe_ends_it, note
from litmegalodon.runs.request import Request, check_request
from litmegalodon.utils import errors
from litmegalodon.utils.allocator import keep_freed_memory
from litmegalodon.utils.command_line import prepare, take_texts
from litmegalodon.utils.printing import short_path

if TYPE_CHECKING:
    from litmegalodon.inference import Reader

ENDS = {
    "max_new_tokens": "stopped at max_new_tokens",
    "stop": "came to a stop string",
    "document": "came to the end of the document",
}


def generate(cfg: DictConfig, request: Request) -> None:
    """Read what is asked for, keep it where asked to, and write on."""
    # torch takes a second to import: only after the settings are checked.
    from litmegalodon.inference import Reader, load_model

    note(f"checkpoint: {short_path(Path(cfg.ckpt_path))}")
    model, tokenizer = load_model(cfg.ckpt_path, cfg.device, cfg.dtype)
    reader = Reader(model, tokenizer, cfg.state, cfg.piece_tokens)
    readers = read(reader, request)
    if cfg.save_state:
        readers[0].save_state(cfg.save_state)
        note(f"state: {cfg.save_state}, {Path(cfg.save_state).stat().st_size:,} bytes")
    if cfg.max_new_tokens:
        write(readers, cfg, request)


def read(reader: "Reader", request: Request) -> list["Reader"]:
    """Read the document, and after it each prompt with a reader of its own."""
    from litmegalodon.inference import Reader

    document = request.document
    if document and document.left_out:
        names = ", ".join(path.name for path in document.left_out[:3])
        note(f"left out: {len(document.left_out):,} files that are no UTF-8 text, as {names}")
    bar = ReadingBar(document.count_tokens(reader.tokenizer) if document else None)
    if document:
        reader.read(document.blocks(), bar.update)
    elif request.standard_input:
        reader.read(standard_input(), bar.update)
    readers = []
    for prompt in request.prompts:
        readers.append(Reader(reader.model, reader.tokenizer, reader.state, reader.piece_tokens))
        readers[-1].read(prompt, bar.update)
    bar.close()
    return readers


def write(readers: list["Reader"], cfg: DictConfig, request: Request) -> None:
    """Write on from every reader, to standard output as it comes."""
    from litmegalodon.inference import generate_together

    output, began = TextOutput(len(readers)), time.monotonic()
    before = sum(reader.state.tokens for reader in readers)
    texts = generate_together(
        readers, cfg.max_new_tokens, stop=request.stops, seed=cfg.seed, **request.drawing
    )
    for index, text in texts:
        output.add(index, text)
        output.end(reader.ended for reader in readers)
    output.end(True for _ in readers)
    output.finish_line()
    seconds = time.monotonic() - began
    count = sum(reader.state.tokens for reader in readers) - before
    ended = Counter(ENDS[reader.ended] for reader in readers)
    ends = ", ".join(f"{n} {why}" if len(readers) > 1 else why for why, n in ended.items())
    note(f"wrote {count:,} tokens in {seconds:.1f} s, {count / seconds:,.0f} tokens/s; {ends}")


def main(texts: dict[str, list[str]]) -> None:
    """Compose the settings and write; `texts` are the prompts and stop strings typed."""
    # Before Hydra, which would print its jobs to standard output.
    if {"-m", "--multirun"} & set(sys.argv[1:]):
        raise ValueError("-m: there is no sweep over generations; give several prompt= instead")

    @hydra.main(version_base="1.3", config_path="../configs", config_name="generate.yaml")
    def run(cfg: DictConfig) -> None:
        with errors.running(cfg.extras.tracebacks is True), closed_pipe_ends_it():
            generate(cfg, check_request(cfg, texts))

    run()


if __name__ == "__main__":
    with errors.composing():
        prepare(__file__)
        keep_freed_memory()
        main(take_texts("prompt", "stop"))
