"""scripts/train_tokenizer.py as a user runs it."""

import re
import subprocess

import pytest

from litmegalodon.data import SentencePieceTokenizer
from runs import command, run

pytestmark = pytest.mark.slow

SCRIPT = "scripts/train_tokenizer"
QUIET = ("extras.print_config=false", "hydra.run.dir=run")


def test_it_trains_reports_and_replaces_nothing_unasked(tmp_path):
    arguments = ("vocab_size=800", "max_bytes=200000", "output=a.model", *QUIET)
    printed = run(SCRIPT, *arguments, cwd=tmp_path).stdout
    tokenizer = SentencePieceTokenizer(str(tmp_path / "a.model"))
    assert tokenizer.vocab_size == 800
    assert "max_bytes=200000: there was more text, which was not read" in printed
    assert re.search(r"^bytes per token: [23]\.\d{3}$", printed, re.MULTILINE)
    assert re.search(r"^characters with a token: 99\.\d+%", printed, re.MULTILINE)
    assert f"fingerprint {tokenizer.fingerprint}: data/tokenizer=sentencepiece" in printed
    assert (tmp_path / "run" / "sentencepiece.log").stat().st_size > 0
    again = subprocess.run(
        command(SCRIPT, *arguments), cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert again.returncode == 2
    message = "error: output=a.model: is there already; name another, or set overwrite=true\n"
    assert again.stderr == message
    run(SCRIPT, *arguments, "overwrite=true", cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vocab_size=0"], "vocab_size=0: must be a whole number, at least 1"),
        (["model_type=words"], "model_type=words: must be bpe or unigram"),
        (["character_coverage=2"], "character_coverage=2: must be a number above 0 and at most 1"),
        (["output=afile/t.model"], "output=afile/t.model: its folder afile cannot be made"),
        (["vocab_size=100", "max_bytes=20000"], "vocab_size=100: .* set more"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, arguments, message):
    (tmp_path / "afile").write_text("")
    done = subprocess.run(
        command(SCRIPT, "output=a.model", *arguments, *QUIET),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert re.fullmatch(rf"error: {message}.*\n", done.stderr)
    assert not (tmp_path / "a.model").exists()
