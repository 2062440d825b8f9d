"""What a run's loggers get to see of the network, and that it is right, sharded too."""

import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from config_helpers import composed
from litmegalodon.models import Megalodon, MegalodonConfig
from litmegalodon.runs.settings import check_settings
from litmegalodon.training import insight
from litmegalodon.training.callbacks import Monitor
from litmegalodon.training.csv_logger import read_metrics
from runs import metrics
from runs import run as run_command
from train import train

KINDS = ("embedding", "cema", "norms", "attention", "ffn", "head")
SETTINGS = (
    "experiment=debug",
    "model.config.num_layers=2",
    "trainer.max_steps=4",
    "validate_every=2",
    "trainer.limit_val_batches=1",
    "callbacks.monitor.every_n_steps=3",
    "callbacks.report.sample_tokens=4",
    "callbacks.report.validation_tokens=4",
    "data.val_batch_size=2",
)


def run(folder: Path, *settings: str) -> Path:
    """Train the debug experiment in this process; its folder."""
    cfg = composed(*SETTINGS, *settings, folder=folder)
    check_settings(cfg)
    (folder / "run").mkdir(parents=True, exist_ok=True)
    before = dict(os.environ)
    try:
        train(cfg)
    finally:
        # Lightning leaves its rendezvous there, which processes that later tests start would take.
        os.environ.clear()
        os.environ.update(before)
    return folder / "run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("monitor"))


@pytest.fixture(scope="module")
def events(trained: Path) -> EventAccumulator:
    everything = dict.fromkeys(("scalars", "histograms", "images", "tensors"), 0)
    found = EventAccumulator(str(trained / "tensorboard"), size_guidance=everything)
    found.Reload()
    return found


def test_a_run_logs_what_people_look_at(trained: Path) -> None:
    rows = read_metrics(trained / "metrics.csv")
    wanted = {
        *(
            f"weight_norm/{kind}"
            for kind in ["embedding", "cema", "norms", "attention", "ffn", "head"]
        ),
        *(
            f"grad_norm/{kind}"
            for kind in ["embedding", "cema", "norms", "attention", "ffn", "head"]
        ),
        *(f"cema/half_life/p{level}" for level in (10, 50, 90, 99)),
        *(f"cema/frequency/p{level}" for level in (10, 50, 90, 99)),
        *(f"cema/half_life_p50/layer_{layer}" for layer in (0, 1)),
        *(f"timestep_norm/std/{place}" for place in ("layer_0", "layer_1", "final")),
        *("mfu", "memory/process_gib"),
    }
    # After the first step and every third one, and at no other step.
    assert [wanted <= set(row) for row in rows] == [True, False, True, False]
    assert not any(wanted & set(row) for row in rows if row["step"] in (2, 4))
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all({"train/loss", "train/bpb", "train/lr", "tokens_per_second"} <= set(r) for r in rows)
    assert not any("other" in name for name in rows[0])
    for name in ("memory.png", "loss.png", "sample.txt"):
        assert (trained / name).stat().st_size > 0


def test_norms_by_kind_add_up_to_the_norm_of_all(trained: Path) -> None:
    for row in read_metrics(trained / "metrics.csv"):
        parts = [value for name, value in row.items() if name.startswith("grad_norm/")]
        if parts:
            total = math.sqrt(sum(value**2 for value in parts))
            assert total == pytest.approx(row["train/grad_norm"], rel=1e-5)


def test_training_and_validation_are_in_the_same_bits(trained: Path) -> None:
    rows = read_metrics(trained / "metrics.csv")
    validated = next(row for row in rows if "val/bpb" in row)
    ratio = validated["val/bpb"] / validated["val/loss"]
    assert all(row["train/bpb"] == pytest.approx(ratio * row["train/loss"]) for row in rows)


def test_tensorboard_gets_the_same_figures_and_what_csv_cannot_hold(
    trained: Path, events: EventAccumulator
) -> None:
    rows = read_metrics(trained / "metrics.csv")
    for name in ("train/loss", "weight_norm/cema", "cema/half_life/p50", "val/bpb"):
        shown = [event.value for event in events.Scalars(name)]
        assert shown == pytest.approx([row[name] for row in rows if name in row], rel=1e-6)
    assert [len(events.Histograms(f"cema_log10_half_life/layer_{i}")) for i in (0, 1)] == [2, 2]
    assert len(events.Images("memory")) == 2
    texts = events.Tensors("sample/text_summary")
    assert b"--- continued by the model" in texts[-1].tensor_proto.string_val[0]
    # One at the first validation, one at the end.
    assert len(texts) == 2


def test_looking_changes_no_bit_of_training(trained: Path, tmp_path: Path) -> None:
    blind = run(tmp_path, "callbacks.monitor=null", "callbacks.report=null", "logger=csv")
    losses = [
        [(row["train/loss"], row.get("val/bpb")) for row in read_metrics(folder / "metrics.csv")]
        for folder in (trained, blind)
    ]
    assert losses[0] == losses[1]
    assert sorted(path.name for path in blind.iterdir()) == [
        "checkpoints",
        "hparams.yaml",
        "metrics.csv",
    ]


def test_half_lives_are_those_of_the_recurrence() -> None:
    config = MegalodonConfig(
        vocab_size=64, num_layers=2, model_dim=8, z_dim=4, value_dim=8, num_heads=1,
        ffn_hidden_dim=8, cema_ndim=2, chunk_size=8, norm_num_groups=2,
    )  # fmt: skip
    model = Megalodon(config)
    model.initialise(0)
    with torch.no_grad():
        cema = model.layers[1].mega.cema
        # |q| = 1 - sigmoid(alpha) sigmoid(delta), by hand: half of it is left after 10 tokens.
        share = 1 - 0.5**0.1
        cema.alpha.fill_(0.0)
        cema.delta.fill_(math.log(2 * share / (1 - 2 * share)))
        # The n-th state turns by n sigmoid(theta) / N.
        cema.theta.fill_(math.log(0.25 / 0.75))
    first, second = insight.memories(model)
    assert second.half_life.tolist() == pytest.approx([10.0] * 16, rel=1e-5)
    assert sorted(set(second.frequency.tolist())) == pytest.approx([0.125, 0.25])
    figures = insight.quantiles([first, second])
    assert figures["cema/half_life_p50/layer_1"] == pytest.approx(10.0, rel=1e-5)
    assert figures["cema/half_life/p99"] == pytest.approx(10.0, rel=1e-5)


def test_a_network_without_moving_averages_has_no_memory_to_show() -> None:
    model = nn.ModuleDict({"embed_tokens": nn.Embedding(4, 4), "lm_head": nn.Linear(4, 4)})
    assert insight.memories(model) == []
    assert insight.quantiles([]) == {}
    assert insight.norm_statistics(None) == {}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("embed.weight", "embedding"),
        ("layers.0.mega.cema.alpha", "cema"),
        ("layers.0.mega.timenorm.weight", "norms"),
        ("layers.0.mega.gamma", "attention"),
        ("layers.0.mega.wh2.weight", "attention"),
        ("layers.0.nffn.norm.bias", "norms"),
        ("layers.0.nffn.alpha", "ffn"),
        ("output.final_norm.weight", "norms"),
        ("output.output.weight", "head"),
        # transformers' names
        ("layers.0.self_attn.q_proj.weight", "attention"),
        ("layers.0.mlp.gate_proj.weight", "ffn"),
        ("layers.0.input_layernorm.weight", "norms"),
        ("model.embed_tokens.weight", "embedding"),
        ("lm_head.weight", "head"),
        ("something.else", "other"),
    ],
)
def test_kinds_follow_from_names(name: str, kind: str) -> None:
    assert insight.kind_of(name) == kind


@pytest.mark.parametrize(("norm", "looks"), (("timestep", True), ("layer", False), ("rms", False)))
def test_only_timestep_norms_have_statistics_to_log(norm: str, looks: bool) -> None:
    trainer = SimpleNamespace(loggers=["csv"], global_step=0)
    module = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(norm=norm)))
    Monitor("here").on_train_batch_start(trainer, module)
    assert (module.watch is not None) == looks


def test_the_measured_peak_is_one_of_this_machine() -> None:
    peak = insight.measured_peak(torch.device("cpu"), torch.float32)
    assert 1e8 < peak < 1e15


def test_a_setting_without_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^callbacks\.monitor\.every_n_steps=0: must be at least"):
        Monitor("here", 0)


@pytest.mark.slow
def test_sharded_figures_are_those_of_one_process(trained: Path, tmp_path: Path) -> None:
    short = ("trainer.max_steps=1", "trainer.limit_val_batches=1", "callbacks.report=null")
    sharded = ("trainer.devices=2", "callbacks.best_checkpoint=null", "hydra.run.dir=two")
    given = [s for s in SETTINGS if not s.startswith(("trainer.", "callbacks.report"))]
    run_command("train", *given, *short, *sharded, cwd=tmp_path)
    ours, theirs = (
        {row["step"]: row for row in rows}["1"]
        for rows in (metrics(trained), metrics(tmp_path / "two"))
    )
    for name in ours:
        if name.startswith(("weight_norm/", "grad_norm/", "cema/")):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-4), name
