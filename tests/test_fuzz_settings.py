"""Whatever value a setting is given is taken or named; settings that suit each other train."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config_helpers import composed
from guard_helpers import trained
from runs import losses
from test_every_setting import leaves, of_training, what_is_said


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The configuration that is composed once, and overridden often."""
    return composed(
        "experiment=debug", "trainer.accelerator=cpu", folder=tmp_path_factory.mktemp("base")
    )


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_value_at_any_setting_is_taken_or_named(data, base):
    key = data.draw(st.sampled_from(list(leaves(base))))
    number = st.integers() | st.floats() | st.sampled_from([math.inf, 10**30, 0])
    value = data.draw(
        number | st.text(st.characters(codec="utf-8", exclude_characters="${}\\"), max_size=6)
    )
    said = what_is_said(base, key, value, of_training, [])
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
