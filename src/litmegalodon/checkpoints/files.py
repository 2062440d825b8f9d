"""What a checkpoint's folder holds, and whether it suits a model."""

import io
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from litmegalodon.checkpoints.finding import FILES, META, is_complete
from litmegalodon.checkpoints.manifest import damage, damaged_file
from litmegalodon.models import kind_of, with_defaults

# What the description of a checkpoint's tensors consists of, by module.
DESCRIPTION = {
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch": ("Size",),
    # Looks a name up among torch's layouts.
    "torch.serialization": ("_get_layout",),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
}


def check_same_model(ours: Mapping[str, Any], theirs: Mapping[str, Any], setting: str) -> None:
    """Compare a model's config with the one a checkpoint was made with.

    Args:
        ours: the model's config.
        theirs: the checkpoint's.
        setting: what named the checkpoint, for the message.

    Raises:
        ValueError: they differ in anything that shapes or interprets the weights.
    """
    # Dropout and initialisation change no weight that is there already.
    harmless = {"dropout", "hidden_dropout", "attention_dropout", "init_mode", "init_std"}
    kinds = [kind_of(config).kind for config in (ours, theirs)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{setting}: is of another model, a {kinds[1]}, and this is a {kinds[0]}")
    ours, theirs = with_defaults(ours), with_defaults(theirs)
    names = [k for k in sorted({*ours, *theirs} - harmless) if ours.get(k) != theirs.get(k)]
    if names:
        listed = ", ".join(f"model.config.{k}={ours.get(k)} (there {theirs.get(k)})" for k in names)
        raise ValueError(f"{setting}: is of another model: {listed}; use its settings")


def refuse_damaged(setting: str, wrong: str | None, instead: str = "another one") -> None:
    """Raise ValueError if something is wrong with a checkpoint: `wrong` says what."""
    if wrong is not None:
        raise ValueError(f"{setting}: cannot be read, it is damaged: {wrong}; take {instead}")


@contextmanager
def damaged_is_refused(setting: str) -> Iterator[None]:
    """Turn what reading a damaged checkpoint raises into a ValueError that names the setting."""
    try:
        yield
    # A pickle with a flipped bit can raise anything; torch's own is no Exception.
    except (CheckpointException, Exception) as raised:
        error: BaseException = raised
        if isinstance(raised, CheckpointException):
            # By rank, an exception and where it was raised.
            error = next(iter(raised.failures.values()))[0]
        if isinstance(error, KeyboardInterrupt):
            raise error from None
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{setting}: cannot be read, it is damaged or no checkpoint of this project "
            f"({said[0]}); take another one"
        ) from error


def read_meta(path: str | Path, setting: str) -> dict[str, Any]:
    """What a checkpoint holds beside its tensors.

    Raises:
        ValueError: the path is no complete checkpoint.
    """
    path = Path(path)
    if not is_complete(path):
        raise ValueError(
            f"{setting}: is not a complete checkpoint, which is a folder that holds "
            f"{' and '.join(FILES)}; take one of a run's checkpoints/, or ckpt_path=last"
        )
    with damaged_is_refused(setting):
        wrong = damaged_file(path, META)
    refuse_damaged(setting, wrong)
    with damaged_is_refused(setting):
        meta = torch.load(path / META, weights_only=True)
        # What is asked of it later.
        meta["hyper_parameters"]["config"], meta["global_step"]
        return meta


def read_tensors(path: str | Path, tensors: Mapping[str, Tensor], setting: str) -> None:
    """Fill tensors with those of the same names in a checkpoint, in one process.

    However many processes wrote it. All its files are read before, to see whether one is damaged,
    once as long as they stay as they are. Nothing that the checkpoint names is run.

    Raises:
        ValueError: a tensor is missing or of another shape, or a file is damaged.
    """
    with damaged_is_refused(setting):
        files = sorted(Path(path).iterdir())
        times = tuple((f.stat().st_size, f.stat().st_mtime_ns) for f in files)
        wrong = _damage(Path(path), tuple(files), times)
    refuse_damaged(setting, wrong)
    with damaged_is_refused(setting), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is disabled.*")
        dcp.load(dict(tensors), storage_reader=_TensorReader(path), no_dist=True)


@lru_cache(maxsize=8)
def _damage(path: Path, *files: Any) -> str | None:
    return damage(path)


def read_state(path: str | Path, state: dict[str, Any]) -> None:
    """Fill a nested dict with a checkpoint's entries of the same names, all processes together.

    Nothing that the checkpoint names is run. What a damaged one raises is `damaged_is_refused`'s.
    """
    dcp.load(state, storage_reader=_Reader(path), planner=_Planner())


class _Reader(FileSystemReader):
    """Reads the description of a checkpoint's tensors without running what it names."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = _Unpickler(io.BytesIO((Path(self.path) / ".metadata").read_bytes())).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(".metadata describes no tensors")
        if metadata.storage_meta is None:
            raise pickle.UnpicklingError(".metadata does not say how it was written")
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _TensorReader(_Reader):
    """Reads tensors only: entries of the other kind are pickles, which a network does not have."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = super().read_metadata(*args, **kwargs)
        metadata.state_dict_metadata = {
            name: entry
            for name, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        return metadata


class _Planner(dcp.DefaultLoadPlanner):
    """Takes entries that are no tensors, as an optimizer's settings, as plain values only."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        # torch unpickles them freely: it gets its own writing of what the safe reader made of them.
        again = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), again)
        again.seek(0)
        super().load_bytes(read_item, again)


class _Unpickler(pickle._Unpickler):
    """Makes what is in `DESCRIPTION`, and calls nothing else.

    The one of pickle's two that is written in Python: the other one reserves as much memory as a
    damaged byte asks for, tens of GB. Twice as slow: 48,000 shards take 1.7 s.
    """

    # Nor does this one make room for a bytearray of any length.
    dispatch = {  # noqa: RUF012
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name not in DESCRIPTION.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not run")
        return super().find_class(module, name)
