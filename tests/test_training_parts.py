"""Optimizer, schedule and metrics do what the reference's formulas say."""

import itertools
import math

import pytest
import torch
from torch import nn

from litmegalodon.evaluation.metrics import TokenLoss, bits_per_byte
from litmegalodon.models import Megalodon, MegalodonConfig
from litmegalodon.training.optimizer import adamw
from litmegalodon.training.schedule import ratio, warmup_schedule

SMALL = MegalodonConfig(
    vocab_size=20,
    num_layers=1,
    model_dim=8,
    z_dim=4,
    value_dim=8,
    num_heads=1,
    ffn_hidden_dim=8,
    cema_ndim=2,
    chunk_size=4,
    norm_num_groups=2,
)


def test_warmup_rises_in_a_line_from_its_initial_ratio():
    at = [ratio(step, "cosine", 10, 100, 1e-4, 0.01, 1) for step in range(11)]
    assert at[0] == 1e-4
    assert at[10] == 1.0
    assert all(math.isclose(b - a, (1 - 1e-4) / 10) for a, b in itertools.pairwise(at))


@pytest.mark.parametrize(
    ("kind", "step", "want"),
    [
        ("cosine", 55, 0.01 + 0.5 * 0.99),
        ("cosine", 100, 0.01),
        ("cosine", 1000, 0.01),
        ("linear", 55, 0.505),
        ("linear", 100, 0.01),
        ("linear", 1000, 0.01),
        ("constant", 55, 1.0),
        ("constant", 1000, 1.0),
    ],
)
def test_schedule_after_the_warmup(kind, step, want):
    assert math.isclose(ratio(step, kind, 10, 100, 1e-4, 0.01, 1), want)


def test_the_first_update_uses_step_zero():
    optimizer = adamw(Megalodon(SMALL).named_parameters(), lr=2.0)
    schedule = warmup_schedule(optimizer, warmup_steps=4, total_steps=8, initial_ratio=0.5)
    assert schedule.get_last_lr() == [1.0]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("kind", "cosin"),
        ("warmup_steps", -1),
        ("total_steps", 100),
        ("initial_ratio", 2.0),
        ("final_ratio", -0.1),
    ],
)
def test_a_wrong_schedule_is_refused_by_name(setting, value):
    settings = {"kind": "cosine", "warmup_steps": 100, "total_steps": 1000} | {setting: value}
    with pytest.raises(ValueError, match=rf"model\.scheduler\.{setting}={value}: must be"):
        warmup_schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), **settings)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("lr", 0.0), ("betas", (0.9, 1.0)), ("eps", 0.0), ("weight_decay", -1.0), ("decay", "some")],
)
def test_a_wrong_optimizer_is_refused_by_name(setting, value):
    with pytest.raises(ValueError, match=rf"model\.optimizer\.{setting}="):
        adamw(Megalodon(SMALL).named_parameters(), **{setting: value})


def test_all_parameters_decay_by_default_as_in_the_reference():
    model = Megalodon(SMALL)
    (group,) = adamw(model.named_parameters(), weight_decay=0.1).param_groups
    assert group["weight_decay"] == 0.1
    assert len(group["params"]) == len(list(model.parameters()))


def test_only_matrices_decay_where_asked():
    model = Megalodon(SMALL)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, others = adamw(model.named_parameters(), decay="matrices").param_groups
    assert others["weight_decay"] == 0.0
    decayed, others = ({names[id(p)] for p in g["params"]} for g in (decayed, others))
    kinds = ("wv", "wz", "wr", "wh1", "wh2", "fc1", "fc2", "output.output")
    assert decayed == {n for n in names.values() if n.endswith(tuple(f"{k}.weight" for k in kinds))}
    assert decayed | others == set(names.values())


def test_token_loss_weighs_tokens_not_batches():
    metric = TokenLoss()
    metric.update(torch.tensor(10.0), torch.tensor(10))
    metric.update(torch.tensor(3.0), torch.tensor(1))
    assert metric.compute().item() == pytest.approx(13 / 11, rel=1e-15)
    assert metric.compute().dtype == torch.float64


def test_bits_per_byte_pay_for_the_end_of_documents():
    # 8 bytes and one end token at one bit each are 9 bits over 8 bytes.
    assert bits_per_byte(torch.tensor(math.log(2)), 9 / 8).item() == pytest.approx(9 / 8)
