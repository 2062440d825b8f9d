"""The experiment context_length: equal tokens, texts joined as is said, all curves together."""

import csv
import math
import re
import runpy
import shlex
import sys
from types import SimpleNamespace

import pytest

from config_helpers import CONFIGS, composed
from data_helpers import BOS, datamodule
from litmegalodon.evaluation import LossByPosition
from litmegalodon.evaluation.settings import check_evaluation
from litmegalodon.runs.settings import check_settings
from runs import ROOT

FOLDER = CONFIGS / "experiment" / "context_length"
VAL = [b"first", (b"asked ", b"second"), b"3rd"]


def texts(rank=0, world=1, **settings):
    module = datamodule(val=VAL, rank=rank, world=world, val_batch_size=world)
    batches = LossByPosition("unused", **settings).loader(module)
    return [
        SimpleNamespace(text=b["tokens"][0].tolist(), unpredicted=b["unpredicted"]) for b in batches
    ]


def test_each_context_gets_the_same_tokens_in_the_same_steps(tmp_path):
    names = ["context_length", *(f"context_length/{path.stem}" for path in FOLDER.glob("*.yaml"))]
    cfgs = {name: composed(f"experiment={name}", folder=tmp_path) for name in names}
    for cfg in cfgs.values():
        check_settings(cfg)
        assert cfg.data.seq_len * cfg.data.batch_size == 16384
        # Nothing else differs.
        cfg.data.seq_len = cfg.data.batch_size = cfg.data.cutting = None
    assert len(cfgs) == 4
    assert all(cfg == cfgs["context_length"] for cfg in cfgs.values())


def test_the_commands_of_the_results_are_valid(tmp_path):
    page = (ROOT / "docs" / "results.md").read_text()
    (train,) = re.findall(r"^ +python src/train\.py -m experiment=(context_length\S*) ", page, re.M)
    assert len(train.split(",")) == 4
    for name in train.split(","):
        check_settings(composed(f"experiment={name}", folder=tmp_path))
    evaluations = re.findall(r"^ +python src/eval\.py (.* evaluation=context .*)$", page, re.M)
    assert len(evaluations) == 2
    for line in evaluations:
        given = [a for a in shlex.split(line) if a.startswith("evaluation")]
        cfg = composed(*given, "ckpt_path=null", folder=tmp_path, name="eval")
        check_evaluation(cfg, given)
        check_settings(cfg)


def test_joined_texts_go_round_without_a_boundary():
    first, second, third = texts(joined=3)
    # The longest stands first: its opening is longer by the prompt.
    assert bytes(first.text[1:]) == b"asked second3rdfirst"
    assert bytes(second.text[1:]) == b"firstsecond3rd"
    assert bytes(third.text[1:]) == b"3rdfirstsecond"
    assert [text.text[0] for text in (first, second, third)] == [BOS] * 3
    assert [text.unpredicted for text in (first, second, third)] == [7, 1, 1]


def test_joined_texts_are_as_many_and_as_long_as_asked_for_on_any_number_of_processes():
    assert [bytes(t.text[1:]) for t in texts(joined=1, max_tokens=9)] == [b"firstsec"]
    assert len(texts(joined=2)) == 2
    assert len(texts(joined=100)) == len(VAL)
    alone = sorted(t.text for t in texts(joined=3, max_tokens=9))
    shared = [t.text for rank in (0, 1) for t in texts(rank, 2, joined=3, max_tokens=9) if t.text]
    assert sorted(shared) == alone


def test_a_number_of_joined_texts_that_cannot_be_is_named():
    with pytest.raises(ValueError, match=r"evaluation\.joined=0: must be a whole number"):
        LossByPosition("unused", joined=0)


def compare(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare_contexts.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "scripts" / "compare_contexts.py"), run_name="__main__")


def test_all_curves_are_in_one_picture_and_table(tmp_path, monkeypatch, capsys):
    for name, loss in {"1K": 1.0, "lanes/1": 2.0, "lanes/2": 4.0}.items():
        (tmp_path / name).mkdir(parents=True)
        lines = [f"{context},64,127,640,{loss},0" for context in ("whole", "1 chunk")]
        text = "\n".join(["context,from,to,tokens,loss,perplexity", *lines])
        (tmp_path / name / "context.csv").write_text(text)
    out = tmp_path / "new" / "all.png"
    compare(monkeypatch, tmp_path / "1K", tmp_path / "lanes", "--out", out)
    assert out.stat().st_size > 10_000
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert [(row["name"], row["runs"], row["from"]) for row in rows] == [
        ("1K", "1", "64"),
        ("lanes", "2", "64"),
    ]
    bits = [float(row["bits"]) for row in rows]
    assert bits == pytest.approx([1 / math.log(2), 3 / math.log(2)])
    assert float(rows[1]["bits_std"]) == pytest.approx(2**0.5 / math.log(2))
    assert "all.csv" in capsys.readouterr().out

    with pytest.raises(SystemExit):
        compare(monkeypatch, tmp_path / "lanes" / "1", tmp_path / "1K", tmp_path / "1K")
    assert "error: FOLDER: 1K is the name of 2 of them" in capsys.readouterr().err

    with pytest.raises(SystemExit):
        compare(monkeypatch, out.parent)
    assert f"error: FOLDER={out.parent}: holds no context.csv" in capsys.readouterr().err
