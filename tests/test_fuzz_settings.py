"""Every setting with a wrong type and a wrong value ends in one sentence; valid ones train."""

import copy
import math

import pytest
from hydra.utils import instantiate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from config_helpers import composed
from guard_helpers import trained
from litmegalodon.runs.instantiate import make_trainer
from litmegalodon.runs.settings import check_settings
from litmegalodon.utils import errors
from runs import losses

# Of another type than any setting, of another type than numbers, and out of every range.
WRONG = ({"a": 1}, [1, "b"], "zzz", -7, 2.5)
ABOVE_ZERO = (
    "data.in_memory_limit",
    "model.config.rope_base",
    "model.optimizer.lr",
    "model.optimizer.eps",
    "model.optimizer.weight_decay",
    "model.scheduler.cycles",
    "trainer.gradient_clip_val",
    "trainer.strategy.timeout_minutes",
    "callbacks.report.temperature",
    "callbacks.watchdog.silence_seconds",
    "callbacks.spike_guard.spike_score",
)
# Which of these a setting may be, where it is not its type that says so.
TEXT = "any text"
FINE = {
    "tags": (),
    "task_name": TEXT,
    "optimized_metric": TEXT,
    "data.source.root": TEXT,
    "trainer.default_root_dir": TEXT,
    "logger.csv.save_dir": TEXT,
    "logger.tensorboard.save_dir": TEXT,
    **{f"logger.tensorboard.{name}": TEXT for name in ("name", "version", "prefix")},
    **{f"paths.{name}_dir": TEXT for name in ("root", "data", "log", "output", "work")},
    **{
        f"callbacks.{name}.dirpath": TEXT
        for name in ("last_checkpoint", "best_checkpoint", "monitor", "report", "spike_guard")
    },
    **dict.fromkeys(ABOVE_ZERO, 2.5),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The configuration that is composed once, and overridden often."""
    return composed(
        "experiment=debug", "trainer.accelerator=cpu", folder=tmp_path_factory.mktemp("base")
    )


def leaves(node, name=""):
    for key in node:
        inner, value = f"{name}.{key}" if name else key, node._get_node(key)
        if OmegaConf.is_dict(value) and not value._is_none():
            yield from leaves(value, inner)
        # init_from takes its place.
        elif inner != "model.init_from":
            yield inner


def what_is_said(base, key, value) -> str | None:
    """The sentence that a user reads, None where the setting is taken; fails on a bug."""
    cfg = copy.deepcopy(base)
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    try:
        check_settings(cfg)
        # All that is made before data are read and processes start.
        instantiate(cfg.data), instantiate(cfg.model), make_trainer(cfg)
    except Exception as error:
        error = errors.cause(error)
        if not errors.is_users(error):
            raise AssertionError(f"{key}={value!r} ends in a traceback") from error
        return errors.explain(error)
    return None


def test_every_setting_with_a_wrong_type_and_a_wrong_value_is_named(base, capsys):
    tried, untouched = 0, []
    for key in leaves(base):
        for value in WRONG:
            fine = FINE.get(key)
            if value == fine or (fine == TEXT and isinstance(value, str)):
                continue
            said = what_is_said(base, key, value)
            if said is None:
                untouched.append(f"{key}={value!r}")
                continue
            tried += 1
            assert "\n" not in said
            assert said.startswith((f"{key}=", f"{key}:")), (key, value, said)
    assert untouched == []
    assert tried >= 500


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_value_at_any_setting_is_taken_or_named(data, base):
    key = data.draw(st.sampled_from(list(leaves(base))))
    number = st.integers() | st.floats() | st.sampled_from([math.inf, 10**30, 0])
    value = data.draw(
        number | st.text(st.characters(codec="utf-8", exclude_characters="${}\\"), max_size=6)
    )
    said = what_is_said(base, key, value)
    assert said is None or "=" in said or ":" in said


@st.composite
def valid(draw) -> list[str]:
    """Overrides that suit each other."""

    def one_of(*values):
        return draw(st.sampled_from(values))

    heads, groups, chunk = one_of(1, 2), one_of(1, 2, 4), one_of(4, 8, 16)
    kind = one_of("cosine", "linear", "constant")
    return [
        f"model.config.num_layers={one_of(1, 2)}",
        f"model.config.num_heads={heads}",
        f"model.config.model_dim={8 * groups}",
        f"model.config.norm_num_groups={groups}",
        f"model.config.z_dim={heads * one_of(4, 6, 8)}",
        f"model.config.value_dim={heads * one_of(3, 8)}",
        f"model.config.ffn_hidden_dim={one_of(5, 16)}",
        f"model.config.cema_ndim={one_of(1, 3, 4)}",
        f"model.config.chunk_size={chunk}",
        f"model.config.swiglu={one_of(True, False)}",
        f"model.config.scale_emb={one_of(True, False)}",
        f"model.config.share_emb={one_of(True, False)}",
        f"model.config.rescale_nffn={one_of(True, False)}",
        f"model.config.norm_affine={one_of(True, False)}",
        f"model.config.dropout={one_of(0.0, 0.3)}",
        f"model.config.attention_dropout={one_of(0.0, 0.3)}",
        f"model.optimizer.decay={one_of('all', 'matrices')}",
        f"model.scheduler.kind={kind}",
        f"model.activation_checkpointing={one_of(True, False)}",
        f"model.impl={one_of('auto', 'torch', 'reference')}",
        f"data.cutting={one_of('packed', 'lanes')}",
        f"data.streaming={one_of(True, False)}",
        f"data.seq_len={chunk * one_of(1, 3)}",
        f"data.batch_size={one_of(1, 3)}",
        f"data.reset_documents={one_of(True, False)}",
        f"trainer.precision={one_of('32-true', 'bf16-mixed')}",
        f"trainer.accumulate_grad_batches={one_of(1, 2)}",
        f"trainer.gradient_clip_val={one_of(1.0, 'null')}",
    ]


def trains(overrides, folder):
    short = ("trainer.max_steps=2", "callbacks=none", "model.scheduler.warmup_steps=1")
    # The helper's own settings name callbacks that are not there now.
    run = trained(folder, *short, *overrides, without="callbacks.")
    found = losses(run)
    assert list(found) == [1, 2]
    assert all(math.isfinite(float(loss)) for loss in found.values())


FUZZ = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


@pytest.mark.slow
@settings(max_examples=10, **FUZZ)
@given(overrides=valid())
def test_valid_settings_train_two_steps(overrides, tmp_path_factory):
    trains(overrides, tmp_path_factory.mktemp("run"))
