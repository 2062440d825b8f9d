"""Degrees that can't be are refused with the nearest ones that can, before torch is imported."""

import subprocess
import sys

import pytest

from config_helpers import composed
from litmegalodon.parallel.mesh import Degrees, resolve
from litmegalodon.runs.settings import check_settings
from runs import ROOT
from test_cli_settings import make_checkpoint

ROW = {"data.seq_len": 2048, "data.val_seq_len": 4096}


@pytest.mark.parametrize(
    ("world", "asked", "want"),
    [
        (1, (1, -1, 1), (1, 1, 1)),
        (8, (1, -1, 4), (1, 2, 4)),
        (8, (-1, 2, 2), (2, 2, 2)),
        (8, (1, 1, -1), (1, 1, 8)),
        (6, (2, 3, 1), (2, 3, 1)),
    ],
)
def test_one_degree_may_follow_from_the_others(world, asked, want):
    degrees = resolve(world, *asked, chunk_size=256, lengths=ROW)
    assert degrees == Degrees(*want)
    assert degrees.readers == want[0] * want[1]


@pytest.mark.parametrize(
    ("world", "asked", "chunk_size", "reason", "nearest"),
    [
        (8, (1, -1, 3), 256, "do not make up 8 processes", (1, 2, 4)),
        (4, (2, 2, 2), 256, "do not make up 4 processes", (1, 2, 2)),
        (8, (1, 2, 2), 256, "do not make up 8 processes", (1, 4, 2)),
        (8, (-1, -1, 2), 256, "only one of them can be -1", (1, 4, 2)),
        (8, (1, -1, 0), 256, "each must be at least 1", (1, 8, 1)),
        # 2,048 tokens are two chunks.
        (4, (1, -1, 4), 1024, "data.seq_len over .*=4 processes .* a multiple of 4096", (1, 2, 2)),
        # Fewer tokens than a chunk for each of them.
        (2, (1, -1, 2), 2048, "data.seq_len over .*=2 processes .* a multiple of 4096", (1, 2, 1)),
    ],
)
def test_what_can_t_be_is_refused_with_what_can(world, asked, chunk_size, reason, nearest):
    names = ("replicate_size", "data_parallel_size", "chunk_parallel_size")

    def named(mesh):
        return " x ".join(f"{name}={degree}" for name, degree in zip(names, mesh, strict=True))

    with pytest.raises(ValueError, match=reason) as error:
        resolve(world, *asked, chunk_size, ROW)
    assert str(error.value).startswith(
        f"trainer.strategy: {named(asked)} over {world} processes with data.seq_len=2048, "
        f"data.val_seq_len=4096 and model.config.chunk_size={chunk_size}: "
    )
    assert str(error.value).endswith(f"the nearest setting that works is {named(nearest)}")
    assert resolve(world, *nearest, chunk_size, ROW) == nearest


def test_settings_are_checked_without_torch(tmp_path):
    code = "import sys, litmegalodon.runs.settings; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", check=True)
    mesh = ("trainer.devices=4", "trainer.strategy.chunk_parallel_size=2")
    # Two groups of two processes read: a batch of two rows is enough.
    check_settings(composed(*mesh, "data.batch_size=2", folder=tmp_path))
    with pytest.raises(ValueError, match="batch_size=3: counts rows over all 2 data-parallel"):
        check_settings(composed(*mesh, "data.batch_size=3", folder=tmp_path))
    with pytest.raises(ValueError, match=r"trainer\.strategy: .* data\.seq_len=256, .* of 512"):
        check_settings(composed(*mesh, "data.seq_len=256", folder=tmp_path))
    with pytest.raises(ValueError, match=r"replicate_size=-2: must be a whole number, at least"):
        check_settings(composed("trainer.strategy.replicate_size=-2", folder=tmp_path))


def test_an_evaluation_asks_nothing_of_the_rows_that_it_does_not_read(tmp_path):
    mesh = ("trainer.devices=4", "trainer.strategy.chunk_parallel_size=2")
    checkpoint = f"ckpt_path={make_checkpoint(tmp_path / 'a.ckpt')}"
    read = ("data.val_seq_len=4096", "data.val_batch_size=2")
    unread = ("data.seq_len=100", "data.batch_size=3")
    settings = (checkpoint, "data.cutting=packed", *mesh, *read, *unread)
    check_settings(composed(*settings, folder=tmp_path, name="eval"))
    with pytest.raises(ValueError, match=r"data\.val_seq_len=256 and .* a multiple of"):
        narrow = composed(*settings, "data.val_seq_len=256", folder=tmp_path, name="eval")
        check_settings(narrow)
    # Without settings of their own held-out rows have those of training.
    alone = ("data.val_seq_len=null", "data.seq_len=100")
    with pytest.raises(ValueError, match=r"data\.seq_len=100 and"):
        check_settings(composed(*settings, *alone, folder=tmp_path, name="eval"))
