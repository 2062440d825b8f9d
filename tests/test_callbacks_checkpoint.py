"""Which checkpoints a run keeps, and that there is a usable one at every moment."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from callbacks_helpers import Killed, Standin, checkpoints, fit
from litmegalodon.checkpoints import META, is_complete
from litmegalodon.parallel import ChunkParallelStrategy
from litmegalodon.training.callbacks import BestCheckpoint, LastCheckpoint


class Saves(Callback):
    """Notes at every save: step, micro-batches read, and the complete checkpoints in the folder."""

    def __init__(self, folder):
        self.folder, self.notes = folder / "checkpoints", []

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        read = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        complete = sorted(path.name for path in self.folder.glob("*") if is_complete(path))
        self.notes.append((trainer.global_step, read, complete))

    def steps(self):
        return [step for step, _, _ in self.notes]


def without_validation(folder, max_steps, **settings):
    saves = Saves(folder)
    fit(folder, max_steps, callbacks=[saves], limit_val_batches=0, **settings)
    return saves


def test_the_newest_is_saved_every_n_steps_and_at_the_end_and_alone_stays(tmp_path):
    saves = without_validation(tmp_path, 5, every=2)
    assert saves.steps() == [2, 4, 5]
    assert checkpoints(tmp_path) == ["last-step=000005.ckpt"]


def test_the_previous_one_goes_only_when_the_new_one_is_there(tmp_path):
    saves = without_validation(tmp_path, 4, every=2)
    assert [complete for _, _, complete in saves.notes] == [[], ["last-step=000002.ckpt"]]


@pytest.mark.parametrize("resumed", [False, True])
def test_nothing_is_saved_in_the_middle_of_an_accumulation(tmp_path, resumed):
    last = None
    if resumed:
        without_validation(tmp_path, 2, every=2, accumulate_grad_batches=3)
        last = tmp_path / "checkpoints/last-step=000002.ckpt"
    saves = without_validation(tmp_path, 6, every=2, accumulate_grad_batches=3, ckpt_path=last)
    expected = [(2, 6), (4, 12), (6, 18)][1 if resumed else 0 :]
    assert [(step, read) for step, read, _ in saves.notes] == expected


class Stop(Callback):
    """Asks to stop after a number of micro-batches."""

    def __init__(self, batches):
        self.batches = batches

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.should_stop |= batch_idx + 1 == self.batches


@pytest.mark.parametrize("callbacks", [[], [Stop(3)]])
def test_the_final_state_is_that_of_a_run_under_way(tmp_path, callbacks):
    fit(tmp_path, 8 if callbacks else 3, every=100, callbacks=callbacks)
    assert checkpoints(tmp_path, "last") == ["last-step=000003.ckpt"]
    state = torch.load(tmp_path / "checkpoints/last-step=000003.ckpt" / META, weights_only=True)
    # A longer run goes on inside its loop over batches, as after a kill.
    assert state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 0


def test_a_run_stopped_in_the_middle_of_an_accumulation_says_what_is_not_saved(tmp_path):
    with pytest.warns(UserWarning, match="checkpoint is of step 2, not 3"):
        fit(
            tmp_path,
            8,
            callbacks=[Stop(11)],
            accumulate_grad_batches=3,
            val_check_interval=300,
        )
    assert checkpoints(tmp_path) == ["last-step=000002.ckpt"]


def test_a_kill_while_saving_leaves_the_previous_one_usable(tmp_path, monkeypatch):
    original = Trainer.save_checkpoint

    def half_written(self, filepath, *args, **kwargs):
        if self.global_step == 4:
            Path(filepath).mkdir()
            (Path(filepath) / ".metadata").touch()
            raise Killed
        original(self, filepath, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "save_checkpoint", half_written)
        without_validation(tmp_path, 6, every=2)
    folder = tmp_path / "checkpoints"
    assert [p.name for p in folder.glob("*") if is_complete(p)] == ["last-step=000002.ckpt"]

    # What is left of the half-written one goes with the next save.
    (folder / "last-step=000004.ckpt").rename(folder / "last-step=000004.ckpt.partial")
    without_validation(tmp_path, 6, every=2, ckpt_path=folder / "last-step=000002.ckpt")
    assert checkpoints(tmp_path) == ["last-step=000006.ckpt"]


def test_nothing_is_deleted_for_a_checkpoint_that_is_not_complete(tmp_path, monkeypatch):
    original = Trainer.save_checkpoint

    def incomplete(self, filepath, *args, **kwargs):
        original(self, filepath, *args, **kwargs)
        if self.global_step == 4:
            (Path(filepath) / META).unlink()

    monkeypatch.setattr(Trainer, "save_checkpoint", incomplete)
    with pytest.warns(UserWarning, match="not complete"):
        without_validation(tmp_path, 4, every=2)
    assert checkpoints(tmp_path) == ["last-step=000002.ckpt", "last-step=000004.ckpt"]


def test_a_resumed_run_replaces_the_checkpoint_it_came_from(tmp_path):
    without_validation(tmp_path, 2)
    last = tmp_path / "checkpoints/last-step=000002.ckpt"
    without_validation(tmp_path, 4, ckpt_path=last)
    assert checkpoints(tmp_path) == ["last-step=000004.ckpt"]


def test_a_resumed_run_that_trains_nothing_saves_nothing(tmp_path):
    class StopAtOnce(Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.should_stop = True

    without_validation(tmp_path, 2)
    saves, last = Saves(tmp_path), tmp_path / "checkpoints/last-step=000002.ckpt"
    fit(tmp_path, 8, callbacks=[saves, StopAtOnce()], ckpt_path=last, limit_val_batches=0)
    assert saves.steps() == []


def test_another_run_s_folder_is_never_touched(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    fit(old, 2)
    before = checkpoints(old)
    fit(new, 4, ckpt_path=old / "checkpoints/last-step=000002.ckpt")
    assert checkpoints(old) == before
    assert checkpoints(new, "last") == ["last-step=000004.ckpt"]


def test_a_fresh_run_keeps_the_checkpoints_it_finds(tmp_path):
    without_validation(tmp_path, 6)
    without_validation(tmp_path, 4)
    assert checkpoints(tmp_path) == ["last-step=000004.ckpt", "last-step=000006.ckpt"]


def test_the_best_validation_is_kept_whatever_comes_after(tmp_path):
    results = Standin({2: 3.0, 4: 2.125, 6: 2.5})
    trainer = fit(tmp_path, 6, every=100, module=results)
    assert checkpoints(tmp_path) == ["best-step=000004-bpb=2.1250.ckpt", "last-step=000006.ckpt"]
    best = tmp_path / "checkpoints/best-step=000004-bpb=2.1250.ckpt"
    assert trainer.checkpoint_callback.best_model_path == str(best)
    assert torch.load(Path(best) / META, weights_only=True)["global_step"] == 4


def test_a_resumed_run_remembers_what_was_best(tmp_path):
    fit(tmp_path, 4, module=Standin({2: 2.0, 4: 3.0}))
    last = tmp_path / "checkpoints/last-step=000004.ckpt"
    fit(tmp_path, 6, ckpt_path=last, module=Standin({6: 2.5}))
    assert checkpoints(tmp_path, "best") == ["best-step=000002-bpb=2.0000.ckpt"]
    last = tmp_path / "checkpoints/last-step=000006.ckpt"
    fit(tmp_path, 8, ckpt_path=last, module=Standin({8: 1.5}))
    assert checkpoints(tmp_path, "best") == ["best-step=000008-bpb=1.5000.ckpt"]


def test_the_newest_state_knows_the_best_of_its_own_step(tmp_path):
    # Both are saved after the same validation: the best first.
    fit(tmp_path, 2, module=Standin({2: 2.0}))
    state = torch.load(tmp_path / "checkpoints/last-step=000002.ckpt" / META, weights_only=True)
    paths = [s.get("best_model_path", "") for s in state["callbacks"].values()]
    assert any(path.endswith("best-step=000002-bpb=2.0000.ckpt") for path in paths)


def test_a_best_that_is_gone_is_replaced_by_the_next_validation(tmp_path):
    fit(tmp_path, 2, module=Standin({2: 1.0}))
    last = tmp_path / "checkpoints/last-step=000002.ckpt"
    (tmp_path / "checkpoints/best-step=000002-bpb=1.0000.ckpt/.metadata").unlink()
    trainer = fit(tmp_path, 4, ckpt_path=last, module=Standin({4: 2.0}))
    assert checkpoints(tmp_path, "best") == ["best-step=000004-bpb=2.0000.ckpt"]
    assert is_complete(trainer.checkpoint_callback.best_model_path)


def test_a_best_that_a_killed_run_saved_ahead_is_saved_again_in_its_place(tmp_path):
    fit(tmp_path, 2, module=Standin({2: 3.0}))
    last = tmp_path / "checkpoints/last-step=000002.ckpt"
    (tmp_path / "checkpoints/best-step=000004-bpb=2.0000.ckpt").mkdir()
    fit(tmp_path, 4, ckpt_path=last, module=Standin({4: 2.0}))
    assert checkpoints(tmp_path, "best") == ["best-step=000004-bpb=2.0000.ckpt"]


def test_the_best_of_another_folder_is_not_this_run_s(tmp_path):
    fit(tmp_path / "old", 2, module=Standin({2: 1.0}))
    last = tmp_path / "old/checkpoints/last-step=000002.ckpt"
    trainer = fit(tmp_path / "new", 3, ckpt_path=last)
    assert trainer.checkpoint_callback.best_model_path == ""
    fit(tmp_path / "new", 4, ckpt_path=last, module=Standin({4: 2.0}))
    assert checkpoints(tmp_path / "new", "best") == ["best-step=000004-bpb=2.0000.ckpt"]


def test_validation_in_the_middle_of_a_step_is_refused_with_the_fix(tmp_path):
    with pytest.raises(ValueError) as error:
        fit(tmp_path, 4, accumulate_grad_batches=3, val_check_interval=4)
    assert str(error.value) == (
        "trainer.val_check_interval=4: must be a multiple of trainer.accumulate_grad_batches=3, "
        "so that validation follows a complete optimizer step; try 3"
    )


def test_an_interval_of_no_steps_is_refused():
    with pytest.raises(ValueError, match=r"every_n_steps=0: must be at least 1"):
        LastCheckpoint("anywhere", 0)


def test_a_trial_run_leaves_no_checkpoint(tmp_path):
    fit(tmp_path, 4, fast_dev_run=2)
    assert checkpoints(tmp_path) == []


def test_the_other_direction_of_best(tmp_path):
    best = BestCheckpoint(tmp_path, monitor="val/accuracy", mode="max")
    name = best.format_checkpoint_name({"step": torch.tensor(7), "val/accuracy": torch.tensor(0.5)})
    assert name == str(tmp_path / "best-step=000007-accuracy=0.5000.ckpt") and best.mode == "max"


def test_a_best_that_could_not_be_saved_does_not_hide_the_one_before_it(tmp_path):
    class Strategy(ChunkParallelStrategy):
        def __init__(self):
            pass

        def broadcast(self, value, src=0):
            return value

        def is_saving(self, path):
            return False

    best, trainer = BestCheckpoint(tmp_path), SimpleNamespace(strategy=Strategy())
    best.best_model_path, best.best_model_score = str(tmp_path / "first.ckpt"), torch.tensor(2.0)
    best.best_k_models = {best.best_model_path: best.best_model_score}
    best._before = best._best()
    best.best_model_path, best.best_model_score = str(tmp_path / "lost.ckpt"), torch.tensor(1.0)
    best.best_k_models = {best.best_model_path: best.best_model_score}
    best._forget_failed(trainer)
    assert best.best_model_path == str(tmp_path / "first.ckpt") and best.best_model_score == 2.0
    assert list(best.best_k_models) == [best.best_model_path]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_as_many_of_the_newest_stay_as_asked_for(tmp_path, keep):
    without_validation(tmp_path, 10, every=2, keep=keep)
    kept = [f"last-step={step:06d}.ckpt" for step in (2, 4, 6, 8, 10)][-keep:]
    assert checkpoints(tmp_path) == kept


def test_a_damaged_one_does_not_count_among_those_that_stay(tmp_path):
    class Damage(Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 5:
                (tmp_path / "checkpoints/last-step=000004.ckpt" / META).unlink()

    fit(tmp_path, 6, callbacks=[Damage()], limit_val_batches=0, keep=2)
    assert checkpoints(tmp_path) == ["last-step=000002.ckpt", "last-step=000006.ckpt"]


def test_what_a_killed_run_has_left_goes_when_the_next_one_starts(tmp_path):
    for kind in ("last-step=000004", "best-step=000004-bpb=2.0000"):
        for ending in (".ckpt.partial", ".ckpt.deleted"):
            (tmp_path / "checkpoints" / f"{kind}{ending}").mkdir(parents=True)
    fit(tmp_path, 1, limit_val_batches=0, every=100)
    assert checkpoints(tmp_path) == ["last-step=000001.ckpt"]


def test_a_folder_that_cannot_be_written_to_is_refused_before_training(tmp_path):
    (tmp_path / "checkpoints").touch()
    expected = r"callbacks\.last_checkpoint\.dirpath=.*/checkpoints: no checkpoint can be written"
    with pytest.raises(ValueError, match=expected):
        fit(tmp_path, 2)
