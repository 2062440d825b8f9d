"""A damaged checkpoint is known: nothing of it is loaded, and what is wrong is named."""

import shutil

import pytest

from litmegalodon import checkpoints
from litmegalodon.checkpoints.manifest import MANIFEST, damage, wrong_size
from writing_helpers import SHARD, holds, loaded, save, state, writer

pytestmark = pytest.mark.usefixtures("one_process_group")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint to damage copies of."""
    path = tmp_path_factory.mktemp("whole") / "checkpoints" / "last-step=000003.ckpt"
    save(writer(asynchronous=False), path, state(1.0))
    return path


def flip(data, random):
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def cut(data, random):
    return data[: random.randrange(len(data))]


def swap(data, random):
    """Two different bytes change places."""
    while True:
        one, other = sorted(random.sample(range(len(data)), 2))
        if data[one] != data[other]:
            break
    changed = bytearray(data)
    changed[one], changed[other] = data[other], data[one]
    return bytes(changed)


def grow(data, random):
    return data + random.randbytes(random.randrange(1, 100))


@pytest.mark.parametrize("change", [flip, cut, swap, grow])
def test_no_changed_byte_of_any_file_is_loaded(whole, change, tmp_path):
    from random import Random

    random, copy = Random(0), tmp_path / "checkpoints" / whole.name
    shutil.copytree(whole, copy)
    assert damage(copy) is None
    for name in (SHARD, ".metadata", "meta.pt", MANIFEST):
        data = (whole / name).read_bytes()
        for _ in range(40):
            (copy / name).write_bytes(change(data, random))
            assert damage(copy).startswith(name)
            with pytest.raises(ValueError, match=r"^setting: cannot be read, it is damaged: ") as e:
                loaded(copy)
            assert name in str(e.value) and "\n" not in str(e.value)
            # Where sizes tell, none is taken for the newest.
            if wrong_size(copy):
                assert checkpoints.newest(tmp_path) is None
        (copy / name).write_bytes(data)
    holds(copy, 1.0)


def test_two_files_that_have_changed_places_are_refused(whole, tmp_path):
    copy = tmp_path / "copy.ckpt"
    shutil.copytree(whole, copy)
    for one, other in ((SHARD, "meta.pt"), (".metadata", SHARD)):
        a, b = ((copy / name).read_bytes() for name in (one, other))
        (copy / one).write_bytes(b)
        (copy / other).write_bytes(a)
        assert damage(copy) is not None
        (copy / one).write_bytes(a)
        (copy / other).write_bytes(b)


@pytest.mark.parametrize("name", [SHARD, *checkpoints.FILES])
def test_a_lost_file_is_named(name, whole, tmp_path, capsys):
    copy = tmp_path / "copy.ckpt"
    shutil.copytree(whole, copy)
    (copy / name).unlink()
    assert damage(copy) == f"{name} is missing"
    assert checkpoints.newest(tmp_path) is None
    assert f"{name} is missing; another one is looked for" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"auto: no checkpoint under .* is whole, of 1"):
        checkpoints.find("ckpt_path", "auto", tmp_path, tmp_path)


def test_the_newest_is_told_by_its_manifest_and_not_by_copied_times(whole, tmp_path):
    one, two = tmp_path / "one.ckpt", tmp_path / "two.ckpt"
    ours = writer(asynchronous=False)
    for path in (one, two):
        ours.changed()
        save(ours, tmp_path / "x" / path.name, state())
    # The newer one is copied first.
    shutil.copytree(tmp_path / "x" / two.name, two, copy_function=shutil.copy)
    shutil.copytree(tmp_path / "x" / one.name, one, copy_function=shutil.copy)
    shutil.rmtree(tmp_path / "x")
    assert checkpoints.newest(tmp_path) == two
    assert checkpoints.older(two) == [one] and checkpoints.older(one) == []
    # A shortened one is neither.
    (one / SHARD).write_bytes(b"")
    assert checkpoints.older(two) == []


def test_a_checkpoint_without_a_manifest_is_loaded_as_before(whole, tmp_path):
    copy = tmp_path / whole.name
    shutil.copytree(whole, copy)
    (copy / MANIFEST).unlink()
    assert damage(copy) is None
    holds(copy, 1.0)
    assert checkpoints.newest(tmp_path) == copy
