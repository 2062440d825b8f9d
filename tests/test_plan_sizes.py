"""The formulae of a plan against real models: parameters, saved tensors, arithmetic."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from hydra.utils import instantiate

from config_helpers import CONFIGS, composed
from litmegalodon.models import Megalodon, MegalodonConfig
from litmegalodon.ops.cema.pytorch import BLOCK
from litmegalodon.ops.chunk_attention.causal import ROWS
from litmegalodon.planning import sizes
from litmegalodon.planning.sizes import Share
from runs import ENVIRONMENT, ROOT
from saved_tensors import counting

SMALL = MegalodonConfig(
    vocab_size=264,
    num_layers=3,
    model_dim=128,
    z_dim=48,
    value_dim=320,
    num_heads=2,
    ffn_hidden_dim=192,
    chunk_size=256,
    norm_num_groups=4,
    swiglu=True,
)
PRESETS = {
    "mega200m": 220_627_968,
    "mega1b3": 1_342_832_640,
    "mega7b1": 7_117_381_632,
    "mega7b3": 7_385_817_088,
}


def on_meta(config: MegalodonConfig) -> Megalodon:
    with torch.device("meta"):
        return Megalodon(config)


def test_every_preset_has_a_released_size():
    assert {path.stem for path in (CONFIGS / "model").glob("mega*m.yaml")} | PRESETS.keys() == {
        path.stem for path in (CONFIGS / "model").glob("mega[0-9]*.yaml")
    }


@pytest.mark.parametrize("name", PRESETS)
def test_a_released_preset_has_as_many_parameters_as_the_released_model(name, tmp_path):
    config = instantiate(composed("~experiment", f"model={name}", folder=tmp_path).model.config)
    assert (config.chunk_size, config.rope_base or 10_000) == (2048, 10_000)
    assert sum(p.numel() for p in on_meta(config).parameters()) == PRESETS[name]


@pytest.mark.parametrize(
    ("name", "count"), [("200m", 220_627_968), ("1b", 1_342_832_640), ("7b", 7_385_817_088)]
)
def test_an_experiment_has_the_size_that_its_name_says(name, count, tmp_path):
    config = instantiate(composed(f"experiment={name}", folder=tmp_path).model.config)
    assert sum(p.numel() for p in on_meta(config).parameters()) == count


def test_the_7b_experiment_is_the_paper_s(tmp_path):
    cfg = composed("experiment=7b", folder=tmp_path)
    config, optimizer = cfg.model.config, cfg.model.optimizer
    assert (config.chunk_size, config.rope_base, config.vocab_size) == (4096, 1e5, 32000)
    tokens = cfg.data.seq_len * cfg.data.batch_size * cfg.trainer.accumulate_grad_batches
    assert (cfg.data.seq_len, tokens) == (2**15, 2**22)
    assert abs(tokens * cfg.trainer.max_steps - 2e12) < tokens
    assert (optimizer.lr, list(optimizer.betas), optimizer.weight_decay) == (
        3.5e-4,
        [0.9, 0.95],
        0.1,
    )
    schedule = cfg.model.scheduler
    assert (schedule.kind, schedule.warmup_steps) == ("cosine", 2500)
    assert cfg.trainer.gradient_clip_val == 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"swiglu": False},
        {"share_emb": True},
        {"norm_affine": False},
        {"rescale_nffn": True},
        {"norm": "layer", "ema": "real"},
        {"norm": "rms", "attention": "plain", "residual": "plain"},
    ],
    ids=lambda changes: "".join(changes) or "as it is",
)
def test_the_formulae_know_every_parameter(changes):
    config = dataclasses.replace(SMALL, **changes)
    model = on_meta(config)
    shapes = sorted(tuple(p.shape) for p in model.layers[0].parameters())
    assert sorted(sizes.block_shapes(config)) == shapes
    assert sizes.parameters(config) == sum(p.numel() for p in model.parameters())


def test_the_formulae_know_the_operators_tiles():
    assert (sizes.CEMA_BLOCK, sizes.ATTENTION_ROWS) == (BLOCK, ROWS)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16-mixed"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"swiglu": False}, {"dropout": 0.1, "hidden_dropout": 0.1}],
    ids=lambda changes: " ".join(changes) or "as it is",
)
@pytest.mark.parametrize(("rows", "length"), [(2, 1024), (1, 192)])
def test_activations_are_what_a_model_saves(rows, length, changes, bf16, checkpointing):
    config = dataclasses.replace(SMALL, **changes)
    model = Megalodon(config).train()
    for block in model.layers:
        block.activation_checkpointing = checkpointing
    tokens = torch.randint(0, 256, (rows, length))
    resets = torch.zeros(rows, length, dtype=torch.bool)
    resets[:, [0, length // 3]] = True
    with counting(model) as saved, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model.loss(tokens, tokens, resets=resets)
    share = Share(rows, length, product=2 if bf16 else 4)
    want = sizes.activations(config, share, checkpointing) + sizes.loss_saved(config, share)
    assert want == pytest.approx(saved.bytes, rel=0.2)


@pytest.mark.parametrize("changes", [{"norm": "layer"}, {"norm": "rms"}, {"chunk_size": None}])
def test_activations_with_a_switch_are_what_a_model_saves(changes):
    test_activations_are_what_a_model_saves(1, 1024, changes, bf16=False, checkpointing=False)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16-mixed"])
def test_a_loss_in_pieces_saves_no_logits(bf16, monkeypatch):
    for module in ("models.loss", "planning.sizes"):
        monkeypatch.setattr(f"litmegalodon.{module}.MAX_LOGITS", 0)
    # The blocks save next to nothing beside it.
    config = dataclasses.replace(SMALL, num_layers=1, vocab_size=4096)
    model = Megalodon(config).train()
    model.layers[0].activation_checkpointing = True
    tokens = torch.randint(0, 256, (1, 2048))
    with counting(model) as saved, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model.loss(tokens, tokens)
    share = Share(1, 2048, product=2 if bf16 else 4)
    want = sizes.activations(config, share, True) + sizes.loss_saved(config, share)
    assert want == pytest.approx(saved.bytes, rel=0.2)
    # The logits would take 32 MiB.
    assert want < 2**23


@pytest.mark.slow
def test_activations_are_what_the_kernels_save():
    from saved_by_kernels import CONFIG, LENGTH

    path = os.pathsep.join(
        [str(ROOT / "src"), str(ROOT / "benchmarks"), ENVIRONMENT.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "saved_by_kernels.py")],
        env=ENVIRONMENT | {"PYTHONPATH": path, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    for sharers, saved in enumerate(map(int, done.stdout.split()), 1):
        share = Share(1, LENGTH, sharers, product=2, triton=True)
        want = sizes.activations(CONFIG, share, False) + sizes.loss_saved(CONFIG, share)
        assert want == pytest.approx(saved, rel=0.2)


def test_arithmetic_is_two_operations_for_each_weight_and_what_looks_back():
    model = on_meta(SMALL)
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    weights = sum(module.weight.numel() for module in linear)
    # Of the last token of a row in one chunk: all keys, and half of them on average.
    look_back = SMALL.num_layers * (SMALL.z_dim + SMALL.value_dim) * (256 + 1)
    states = SMALL.num_layers * 12 * SMALL.model_dim * SMALL.cema_ndim
    for length in (256, 2**20):
        assert sizes.forward_flops(SMALL, length) == 2 * weights + look_back + states
    model_flops, done = sizes.step_flops(SMALL, 256, checkpointing=True)
    assert 3.9 < done / (model_flops / 3) < 4
    assert sizes.step_flops(SMALL, 256, checkpointing=False) == (model_flops, model_flops)


def test_sizes_import_nothing_heavy():
    code = "import sys, litmegalodon.planning.sizes, litmegalodon.planning.devices; "
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", check=True)
