"""What is left when a run ends: figures, a curve, a sample."""

import re

import matplotlib.image
import numpy as np
import pytest
import torch

from callbacks_helpers import Standin, datamodule, fit
from litmegalodon.training.callbacks import RunReport
from litmegalodon.training.callbacks.report import draw_loss
from litmegalodon.training.csv_logger import read_metrics


def report(folder, max_steps=4, ckpt_path=None, module=None, **settings):
    settings = {"prompt_bytes": 20, "sample_tokens": 30, **settings}
    return fit(
        folder,
        max_steps,
        callbacks=[RunReport(folder, **settings)],
        ckpt_path=ckpt_path,
        module=module,
    )


def test_the_table_holds_the_run_s_figures_and_what_compressors_reach(tmp_path, capsys):
    report(tmp_path, 6, module=Standin({2: 3.5, 4: 2.25, 6: 2.75}))
    out = capsys.readouterr().out
    last, data = read_metrics(tmp_path / "metrics.csv")[-1], datamodule()
    data.setup()
    baselines = data.baselines()
    for text in (
        "Bigrams, 2.3k parameters",  # 258 x 4 + 4 x 258 + 258
        "96",  # 6 steps of 2 rows of 8 tokens
        "1,234",
        f"2.7500 bits/byte, loss {last['val/loss']:.4f}, perplexity {last['val/ppl']:.4g}",
        f"{baselines['gzip']:.4f} bits/byte",
        f"{baselines['xz']:.4f} bits/byte",
        "297 bytes",
        data.source.fingerprint,
    ):
        assert text in out
    assert re.search(r"last validation, step 6 .* 2\.7500 bits/byte", out)
    assert re.search(r"best validation, step 4 .* 2\.2500 bits/byte", out)
    assert f"best checkpoint: {tmp_path}/checkpoints/best-step=000004-bpb=2.2500.ckpt" in out


def test_the_sample_continues_a_held_out_document(tmp_path, capsys):
    report(tmp_path)
    text = (tmp_path / "sample.txt").read_text()
    held_out = datamodule().source.shards("val")[0].items[0].text
    head, prompt, body = re.fullmatch(
        r"--- (prompt.*?)\n(.*?)\n--- continued.*?\n(.*)\n--- end\n", text, re.DOTALL
    ).groups()
    assert "20 bytes of held " in head
    assert prompt == held_out[:20].decode()
    assert body
    assert prompt in capsys.readouterr().out


def test_the_sample_is_the_seed_s_and_costs_no_random_numbers(tmp_path):
    torch.manual_seed(3)
    fit(tmp_path / "without", 4)
    state = torch.get_rng_state()
    texts = []
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        torch.manual_seed(3)
        report(tmp_path / name, seed=seed)
        assert torch.get_rng_state().equal(state)
        texts.append((tmp_path / name / "sample.txt").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_what_a_model_writes_can_not_command_the_terminal(tmp_path, capsys):
    class Escapes(Standin):
        def on_train_end(self):
            # From any byte, the escape character.
            with torch.no_grad():
                self.model.head.bias[27] = 1000.0

    report(tmp_path, module=Escapes())
    assert "\x1b" in (tmp_path / "sample.txt").read_text()
    assert "\x1b" not in capsys.readouterr().out


def test_no_sample_is_made_where_none_is_wanted(tmp_path, capsys):
    report(tmp_path, sample_tokens=0)
    assert not (tmp_path / "sample.txt").exists()
    assert "sample:" not in capsys.readouterr().out


def test_a_resumed_run_reports_the_whole_run(tmp_path, monkeypatch):
    report(tmp_path, 4)
    drawn = []
    monkeypatch.setattr(
        "litmegalodon.training.callbacks.report.draw_loss",
        lambda metrics, *_: drawn.append([row["step"] for row in metrics]),
    )
    report(tmp_path, 6, ckpt_path=tmp_path / "checkpoints/last-step=000004.ckpt")
    assert drawn == [[1, 2, 3, 4, 5, 6]]


def test_time_counts_on_after_a_resume(monkeypatch):
    clock = iter([100.0, 100.0, 130.0, 1000.0, 1000.0, 1012.0])
    monkeypatch.setattr(
        "litmegalodon.training.callbacks.report.time.monotonic", lambda: next(clock)
    )
    first = RunReport("anywhere")
    first.on_train_start(None, None)
    state = first.state_dict()
    assert state == {"seconds": 30.0}
    second = RunReport("anywhere")
    second.load_state_dict(state)
    second.on_train_start(None, None)
    assert second.state_dict() == {"seconds": 42.0}


def test_the_curve_is_drawn(tmp_path):
    metrics = [{"step": s, "tokens": 100.0 * s, "train/loss": 5.0 / s} for s in range(1, 50)]
    metrics[20] |= {"val/loss": 1.0, "val/bpb": 1.45}
    path = tmp_path / "loss.png"
    assert draw_loss(metrics, path, "A model", {"gzip": 2.0})
    picture = matplotlib.image.imread(path)
    assert picture.shape[:2] == (720, 1280)
    assert np.ptp(picture[..., :3]) == pytest.approx(1.0)


def test_a_run_without_any_metric_has_no_curve_and_still_reports(tmp_path, capsys):
    assert not draw_loss([], tmp_path / "loss.png", "A model")
    fit(
        tmp_path,
        2,
        callbacks=[RunReport(tmp_path, sample_tokens=0)],
        logger=False,
        limit_val_batches=0,
    )
    out = capsys.readouterr().out
    assert "loss curve: none" in out and "optimizer steps" in out
    assert not (tmp_path / "loss.png").exists()


def test_a_loss_that_is_no_number_does_not_break_the_curve(tmp_path):
    metrics = [
        {"step": s, "tokens": 10.0 * s, "train/loss": loss}
        for s, loss in enumerate([3.0, float("nan"), 2.0, float("inf")], 1)
    ]
    assert draw_loss(metrics, tmp_path / "loss.png", "A model")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_tokens": -1}, "callbacks.report.sample_tokens=-1: must be 0 or more"),
        ({"temperature": -2.0}, "callbacks.report.temperature=-2.0: must be 0"),
        ({"top_p": 2.0}, "callbacks.report.top_p=2.0: must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused_before_training(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RunReport("anywhere", **settings)
