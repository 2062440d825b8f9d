"""Checkpoints appear whole or not at all, and hold what was there when they were asked for."""

import ctypes
import errno
import gc
import os
import shutil
import threading
import time
from collections import namedtuple

import pytest
import torch
from torch.distributed.checkpoint import default_planner

from litmegalodon import checkpoints
from litmegalodon.checkpoints.manifest import damage, read_manifest
from litmegalodon.parallel import checkpoint_storage, checkpoint_writing
from litmegalodon.parallel.checkpoint_writing import SaveError
from writing_helpers import SHARD, holds, save, state, writer

# From <malloc.h>.
M_MMAP_THRESHOLD = -3

pytestmark = pytest.mark.usefixtures("one_process_group")


@pytest.fixture
def folder(tmp_path):
    """Where checkpoints go."""
    made = tmp_path / "checkpoints"
    made.mkdir()
    return made


class Held:
    """Holds the writing of tensors until it is let go, and counts it."""

    def __init__(self, monkeypatch):
        self.go, self.times, self.original = threading.Event(), 0, checkpoint_writing.write_tensors
        monkeypatch.setattr(checkpoint_writing, "write_tensors", self)

    def __call__(self, *args):
        self.times += 1
        assert self.go.wait(20)
        return self.original(*args)


def test_what_is_saved_is_what_was_there_bit_for_bit_as_a_synchronous_save(folder, monkeypatch):
    save(writer(asynchronous=False), folder / "sync.ckpt", state(1.0))
    held, ours, tensors = Held(monkeypatch), writer(), state(1.0)
    save(ours, folder / "async.ckpt", tensors)
    # Training goes on, in the same memory.
    tensors["state_dict"]["a"].to_local().add_(1)
    tensors["state_dict"]["b"].zero_()
    tensors["optimizer_0"]["lr"] = 0.25
    assert ours.is_writing(folder / "async.ckpt")
    assert not checkpoints.is_complete(folder / "async.ckpt")
    held.go.set()
    ours.finish()
    holds(folder / "async.ckpt", 1.0)
    one, other = (read_manifest(folder / f"{name}.ckpt")["files"] for name in ("sync", "async"))
    assert one.keys() == other.keys()
    for name in (SHARD, "meta.pt"):
        assert one[name] == other[name]
        assert (folder / "sync.ckpt" / name).read_bytes() == (
            folder / "async.ckpt" / name
        ).read_bytes()


def test_the_copy_is_made_again_in_the_same_memory(folder):
    ours = writer()
    save(ours, folder / "a.ckpt", state(1.0))
    ours.wait()
    before = [buffer.data_ptr() for buffer in ours._staging._buffers if buffer is not None]
    ours.changed()
    save(ours, folder / "b.ckpt", state(2.0))
    ours.finish()
    after = [buffer.data_ptr() for buffer in ours._staging._buffers if buffer is not None]
    assert before == after
    holds(folder / "a.ckpt", 1.0)
    holds(folder / "b.ckpt", 2.0)


def test_who_writes_what_is_planned_once_for_tensors_of_the_same_shapes(folder, monkeypatch):
    plan, planned = default_planner.create_default_global_save_plan, []

    def counted(*args):
        planned.append(1)
        return plan(*args)

    monkeypatch.setattr(default_planner, "create_default_global_save_plan", counted)
    ours = writer()
    for value in (1.0, 2.0, 3.0):
        ours.changed()
        save(ours, folder / f"{value}.ckpt", state(value))
    ours.finish()
    assert len(planned) == 1
    holds(folder / "1.0.ckpt", 1.0)
    holds(folder / "3.0.ckpt", 3.0)
    # Other tensors, another plan.
    ours.changed()
    other = state(4.0)
    other["state_dict"]["c"] = torch.ones(3)
    save(ours, folder / "4.0.ckpt", other)
    ours.finish()
    assert len(planned) == 2
    holds(folder / "4.0.ckpt", 4.0)


def test_one_is_written_at_a_time_and_what_that_costs_is_said(folder, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint_writing, "SAID_SECONDS", 0.0)
    held, ours = Held(monkeypatch), writer()
    save(ours, folder / "a.ckpt", state(1.0))
    ours.changed()
    second = threading.Thread(target=save, args=(ours, folder / "b.ckpt", state(2.0)))
    with caplog.at_level("INFO"):
        second.start()
        time.sleep(0.1)
        assert second.is_alive() and held.times == 1
        held.go.set()
        second.join()
    assert "s for the checkpoint before; a greater checkpoint_every" in caplog.text
    ours.finish()
    holds(folder / "a.ckpt", 1.0)
    holds(folder / "b.ckpt", 2.0)


@pytest.mark.parametrize("links", [True, False])
def test_two_checkpoints_of_one_step_share_their_tensors(folder, monkeypatch, links):
    held, ours = Held(monkeypatch), writer()
    if not links:

        def refused(*_):
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refused)
    save(ours, folder / "best.ckpt", state(1.0))
    # It is not waited for either.
    save(ours, folder / "last.ckpt", state(1.0))
    held.go.set()
    ours.finish()
    assert held.times == (1 if links else 2)
    assert ((folder / "best.ckpt" / SHARD).stat().st_nlink == 2) == links
    shutil.rmtree(folder / "best.ckpt")
    holds(folder / "last.ckpt", 1.0)
    assert damage(folder / "last.ckpt") is None
    ours.changed()
    save(ours, folder / "next.ckpt", state(2.0))
    ours.finish()
    holds(folder / "next.ckpt", 2.0)


def test_a_writer_that_is_closed_leaves_no_thread_and_begins_anew(folder):
    before, ours = threading.active_count(), writer()
    for name in ("a", "b"):
        save(ours, folder / f"{name}.ckpt", state(1.0))
        thread = ours._thread
        ours.finish()
        ours.close()
        thread.join(20)
        assert threading.active_count() <= before
        holds(folder / f"{name}.ckpt", 1.0)


def test_what_follows_comes_when_the_checkpoint_is_complete(folder):
    seen, ours = [], writer()

    def follow(path):
        seen.append((path, checkpoints.is_complete(path)))
        raise PermissionError("not yours")

    save(ours, folder / "a.ckpt", state(), [follow])
    ours.finish()
    assert seen == [(folder / "a.ckpt", True)]


def full_disk(monkeypatch, folder):
    def create(self, path, mode, original=checkpoint_storage._HashingFileSystem.create_stream):
        return original(self, "/dev/full", mode)

    monkeypatch.setattr(checkpoint_storage._HashingFileSystem, "create_stream", create)


def read_only(monkeypatch, folder):
    def refused(path, size):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(checkpoint_writing, "prepare", refused)


def vanished(monkeypatch, folder):
    folder.rename(folder.with_name("elsewhere"))


def no_room(monkeypatch, folder):
    usage = namedtuple("usage", "total used free")(10, 10, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


FAULTS = {
    full_disk: "No space left on device",
    read_only: "Read-only file system",
    vanished: "No such file or directory",
    no_room: "it takes 0.00 GB and the disk has 0.00 GB left; make room",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_save_that_fails_says_so_and_leaves_the_one_before_it(
    folder, fault, asynchronous, monkeypatch, caplog
):
    ours = writer(asynchronous)
    save(ours, folder / "a.ckpt", state(1.0))
    ours.wait()
    with monkeypatch.context() as patch, caplog.at_level("INFO"):
        fault(patch, folder)
        # Two in a row are said, and training goes on.
        for name in ("b", "c"):
            ours.changed()
            save(ours, folder / f"{name}.ckpt", state(2.0))
            ours.wait()
        said = [text for text in caplog.messages if "was not saved" in text]
        assert len(said) == 2
        sentence = f"{folder / 'b.ckpt'} was not saved: {FAULTS[fault]}"
        assert said[0].startswith(sentence) and "\n" not in said[0]
        assert said[0].endswith("the checkpoints before it are as they were")
        # The third ends the run.
        ours.changed()
        with pytest.raises(SaveError, match=r"d\.ckpt was not saved"):
            save(ours, folder / "d.ckpt", state(3.0))
            ours.wait()
        assert not folder.exists() or fault is not vanished
    if fault is vanished:
        folder.with_name("elsewhere").rename(folder)
    assert [path.name for path in folder.iterdir()] == ["a.ckpt"]
    holds(folder / "a.ckpt", 1.0)
    # What is well again is saved again, and counting begins anew.
    ours.changed()
    save(ours, folder / "e.ckpt", state(4.0))
    ours.finish()
    assert not any(ours._failed_in_a_row.values())
    holds(folder / "e.ckpt", 4.0)


def test_a_folder_that_is_lost_ends_the_run_though_another_one_is_well(folder):
    ours, well = writer(), folder.with_name("well")
    save(ours, folder / "a.ckpt", state(1.0))
    ours.wait()
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(SaveError, match=r"d\.ckpt was not saved"):
        for name in "bcd":
            for place in (folder, well):
                ours.changed()
                save(ours, place / f"{name}.ckpt", state(2.0))
                ours.wait()
    assert sorted(path.name for path in well.iterdir()) == ["b.ckpt", "c.ckpt"]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_last_checkpoint_that_fails_is_an_error_at_once(folder, asynchronous, monkeypatch):
    ours = writer(asynchronous)
    with monkeypatch.context() as patch:
        full_disk(patch, folder)
        save(ours, folder / "a.ckpt", state())
        with pytest.raises(SaveError, match=r"a\.ckpt was not saved: No space left on device"):
            ours.finish()
    ours.finish()


def test_the_same_step_is_written_in_full_after_its_twin_failed(folder, monkeypatch):
    ours, original = writer(), checkpoint_writing.write_tensors
    fails = [True]

    def once(*args):
        if fails:
            fails.pop()
            raise OSError(errno.EIO, "once")
        return original(*args)

    monkeypatch.setattr(checkpoint_writing, "write_tensors", once)
    save(ours, folder / "best.ckpt", state(1.0))
    save(ours, folder / "last.ckpt", state(1.0))
    ours.finish()
    assert not (folder / "best.ckpt").exists()
    holds(folder / "last.ckpt", 1.0)


def test_a_process_that_gives_up_waits_for_what_has_begun(folder, monkeypatch):
    held, ours = Held(monkeypatch), writer()
    save(ours, folder / "a.ckpt", state(1.0))
    threading.Timer(0.2, held.go.set).start()
    ours.give_up()
    holds(folder / "a.ckpt", 1.0)


def test_a_process_that_gives_up_leaves_what_others_have_not_begun(folder, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint_writing, "BEGIN_SECONDS", 0.1)
    ours, late = writer(), threading.Event()
    original = ours.gather

    def gather(value):
        assert late.wait(20)
        return original(value)

    monkeypatch.setattr(ours, "gather", gather)
    save(ours, folder / "a.ckpt", state(1.0))
    with caplog.at_level("INFO"):
        ours.give_up()
    assert "is not written: other processes had not come so far" in caplog.text
    late.set()


def peak_of(action) -> int:
    """Bytes by which an action raised this process's memory at most."""

    def status(name):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))

    # Large blocks come from the system and go back to it, whatever earlier tests have freed.
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 64 << 10)
    libc.malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    action()
    peak = status("VmHWM") - before
    libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
    return peak


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
def test_a_save_of_7b_s_shapes_takes_one_tensor_or_one_copy_more_than_the_state(folder):
    # The tensors of 7B in 1/16 of their width: embedding, and eight layers of 32, each thrice.
    width, z, value, ffn, vocab = 256, 64, 512, 512, 2000
    layer = [(z, width), (value, width), (width, value), (width, value)]
    layer += [(ffn, width), (ffn, width), (width, ffn)]
    names = [f"layers.{i}.{j}" for i in range(8) for j in range(len(layer))]
    shapes = {name: layer[i % len(layer)] for i, name in enumerate(names)}
    shapes |= {"embed": (vocab, width), "output": (vocab, width)}

    def filled(scale):
        return {name: torch.ones(shape) * scale for name, shape in shapes.items()}

    tensors = {"state_dict": filled(1), "exp_avg": filled(2), "exp_avg_sq": filled(3)}
    largest = 4 * vocab * width
    total = sum(t.nbytes for part in tensors.values() for t in part.values())
    assert total > 15 * largest
    slack = 6 << 20

    def run(asynchronous):
        ours = writer(asynchronous)
        save(ours, folder / f"{asynchronous}.ckpt", tensors)
        ours.finish()

    # Once before, for what the first save brings into memory.
    save(writer(False), folder / "first.ckpt", {"state_dict": {"a": torch.ones(9)}})
    assert peak_of(lambda: run(False)) < largest + slack
    assert 0.9 * total < peak_of(lambda: run(True)) < total + largest + slack
