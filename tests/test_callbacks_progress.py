"""What a user sees while a run goes on."""

import re

import pytest
from lightning.pytorch import Callback

from callbacks_helpers import datamodule, fit
from litmegalodon.training.callbacks import TokenProgressBar, progress
from litmegalodon.training.callbacks.progress import format_count, format_duration


def lines(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]


class Clock:
    """Seconds that pass only where a test lets them."""

    def __init__(self, monkeypatch, seconds_per_step=0.0):
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)
        clock = self

        class Tick(Callback):
            def on_train_batch_start(self, *_):
                clock.now += seconds_per_step

            def on_validation_batch_start(self, *_):
                clock.now += seconds_per_step

        self.tick = Tick()


def show(folder, max_steps, *callbacks, plain=True, **settings):
    settings = {"every": 1000, **settings}
    bar = TokenProgressBar(plain=plain)
    fit(folder, max_steps, callbacks=[*callbacks, bar], enable_progress_bar=True, **settings)


def test_a_log_gets_a_line_every_twentieth_of_the_run(tmp_path, capsys):
    show(tmp_path, 40, limit_val_batches=0)
    steps = [int(re.match(r"step (\d+)/40 ", line)[1]) for line in lines(capsys)]
    assert steps == [1, *range(2, 41, 2)]


def test_a_slow_run_gets_a_line_every_half_minute_with_the_time_that_remains(
    tmp_path, capsys, monkeypatch
):
    clock = Clock(monkeypatch, seconds_per_step=16.0)
    show(tmp_path, 8, clock.tick, limit_val_batches=0)
    shown = lines(capsys)
    # 5% of 8 steps is less than one: every step is shown, with 16 s for each one left.
    etas = [re.search(r"eta (\S+)", line) for line in shown]
    assert [eta and eta[1] for eta in etas] == [
        None, "1m36s", "1m20s", "1m04s", "48s", "32s", "16s", None,
    ]  # fmt: skip
    show(tmp_path / "long", 60, clock.tick, limit_val_batches=0)
    steps = [int(re.match(r"step (\d+)/60 ", line)[1]) for line in lines(capsys)]
    # Every third step is a twentieth; every second one is half a minute.
    assert steps[:6] == [1, 3, 5, 6, 8, 9]


def test_a_line_tells_loss_speed_tokens_and_the_last_validation(tmp_path, capsys):
    show(tmp_path, 4, module=None)
    shown = lines(capsys)
    number = r"\d+\.\d{4}"
    assert re.fullmatch(
        rf"step 1/4  loss {number}  tokens/s 1\.2k  tokens 16", shown[0].partition("  eta")[0]
    )
    # Validated after steps 2 and 4: the result's own line, and the bits per byte from then on.
    results = [line for line in shown if "val loss" in line]
    assert len(results) == 2
    assert re.fullmatch(
        rf"step 2/4  val bpb {number}  val loss {number}  val ppl {number}", results[0]
    )
    bpb = re.search(rf"val bpb ({number})", results[0])[1]
    (third,) = [line for line in shown if line.startswith("step 3/4")]
    assert f"  val bpb {bpb}  " in third


def test_a_long_validation_says_how_far_it_is(tmp_path, capsys, monkeypatch):
    clock = Clock(monkeypatch, seconds_per_step=20.0)
    show(tmp_path, 2, clock.tick, limit_val_batches=4)
    assert [line for line in lines(capsys) if "validated" in line] == [
        "step 2/2  validated 2/4",
        "step 2/2  validated 4/4",
    ]


def test_a_long_evaluation_says_how_far_it_is(tmp_path, capsys, monkeypatch):
    trainer = fit(tmp_path, 1, callbacks=[TokenProgressBar(plain=True)], enable_progress_bar=True)
    clock, module = Clock(monkeypatch), trainer.lightning_module

    def read(self, batch, batch_idx):
        clock.now += 20.0

    monkeypatch.setattr(type(module), "test_step", read, raising=False)
    capsys.readouterr()
    trainer.test(module, dataloaders=range(5), verbose=False)
    said = capsys.readouterr().out.split("\n")
    assert [line for line in said if "read" in line] == ["batches read 2/5", "batches read 4/5"]


def test_validation_alone_counts_no_steps(tmp_path, capsys):
    bar = TokenProgressBar(plain=True)
    trainer = fit(tmp_path, 2, callbacks=[bar], enable_progress_bar=True)
    capsys.readouterr()
    trainer.validate(trainer.lightning_module, datamodule=datamodule(), verbose=False)
    assert re.fullmatch(
        r"val bpb \d\.\d{4}  val loss \d\.\d{4}  val ppl \d+\.\d{4}\n", capsys.readouterr().out
    )


def test_optimizer_steps_are_counted_not_batches(tmp_path, capsys):
    show(tmp_path, 3, accumulate_grad_batches=2, limit_val_batches=0)
    assert [line.split("  ")[0] for line in lines(capsys)] == ["step 1/3", "step 2/3", "step 3/3"]


def test_a_resumed_run_counts_on(tmp_path, capsys):
    fit(tmp_path, 2)
    capsys.readouterr()
    show(tmp_path, 4, ckpt_path=tmp_path / "checkpoints/last-step=000002.ckpt")
    assert lines(capsys)[0].startswith("step 3/4  ")


def test_a_terminal_gets_a_bar_over_the_whole_run(tmp_path, capsys):
    show(tmp_path, 4, plain=False)
    out = capsys.readouterr().out
    final = [text for text in re.split(r"[\r\n]", out) if text.startswith("training: 100%")][-1]
    assert "4/4" in final
    for name in ("loss=", "val bpb=", "tokens/s=1.2k"):
        assert name in final
    assert "validating" in out
    assert "Epoch" not in out and "DataLoader" not in out


def test_a_file_as_standard_output_gets_lines(tmp_path, capsys):
    # pytest's own capture is no terminal.
    fit(tmp_path, 2, callbacks=[TokenProgressBar()], enable_progress_bar=True)
    out = capsys.readouterr().out
    assert "step 2/2  " in out and "\r" not in out


@pytest.mark.parametrize("plain", [True, False])
def test_only_the_first_process_shows_progress(tmp_path, capsys, plain):
    class Silenced(TokenProgressBar):
        def setup(self, trainer, pl_module, stage):
            super().setup(trainer, pl_module, stage)
            self.disable()

    fit(tmp_path, 2, callbacks=[Silenced(plain=plain)], enable_progress_bar=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0k"), (4096, "4.1k"), (99_960, "100k"), (123_456, "123k"),
     (999_600, "1.0M"), (2_100_000, "2.1M"), (3.2e9, "3.2G"), (1.5e15, "1500T")],
)  # fmt: skip
def test_counts_are_short(number, text):
    assert format_count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (190, "3m10s"),
        (3600, "1h00m"),
        (90_000, "1d01h"),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert format_duration(seconds) == text
