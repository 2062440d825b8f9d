"""Metrics as a plain file: one row per optimizer step, whole after any kill and resume."""

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from omegaconf import DictConfig, ListConfig, OmegaConf

Row = dict[str, str]


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Read a metrics file, [] without one: a dict per row, without what was not measured."""
    return [
        {name: float(cell) for name, cell in row.items() if cell} for row in _read(Path(path))[1]
    ]


class MetricsFile:
    """A CSV table keyed by `step` that grows row by row and never loses one.

    Every change reaches the operating system before the call returns, so a killed process loses
    nothing. Floats are written with `repr`: read back, they are the same bits.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.columns = ["step", "tokens"]
        self._file: io.FileIO | None = None
        self._row: Row = {}
        self._row_start = 0

    def begin(self, step: int) -> None:
        """Continue after `step` optimizer steps: cut later rows.

        At step 0 an earlier run's file is put aside. Raises ValueError if the file there is not a
        metrics file.
        """
        self.close()
        columns, rows = _read(self.path)
        if step == 0 and rows:
            aside = _free_name(self.path)
            self.path.rename(aside)
            rank_zero_info(f"{self.path.name} of an earlier run is kept as {aside}")
            columns, rows = [], []
        kept = [row for row in rows if int(row["step"]) <= step]
        if len(kept) < len(rows):
            rank_zero_info(f"{self.path}: {len(rows) - len(kept)} rows after step {step} are cut")
        self._rewrite(columns or ["step", "tokens"], kept)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics of `step`: into its row if that is the last one, else as a new row."""
        if self._file is None:
            columns, rows = _read(self.path)
            self._rewrite(columns or self.columns, rows)
        cells = {"step": str(step)} | {n: _cell(n, value) for n, value in metrics.items()}
        new_columns = [name for name in cells if name not in self.columns]
        same_row = self._row.get("step") == cells["step"]
        row = self._row | cells if same_row else cells
        if new_columns:
            rows = _read(self.path)[1]
            self._rewrite(self.columns + new_columns, (rows[:-1] if same_row else rows) + [row])
        elif row != self._row:
            self._row_start = self._row_start if same_row else self._file.seek(0, os.SEEK_END)
            self._file.seek(self._row_start)
            self._write(_line(self.columns, row))
            self._file.truncate()
            self._row = row

    def close(self) -> None:
        """Close the file; the next `record` opens it again where it ended."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: bytes) -> None:
        # A disk that becomes full takes a part and says so only when it is given the rest.
        while line:
            try:
                line = line[self._file.write(line) :]
            except OSError as error:
                error.filename = str(self.path)
                raise

    def _rewrite(self, columns: list[str], rows: list[Row]) -> None:
        # A new file that takes the old one's place in one move: a kill leaves either of them, never
        # a part.
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [_line(columns, {name: name for name in columns})]
        lines += [_line(columns, row) for row in rows]
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_bytes(b"".join(lines))
        partial.replace(self.path)
        self._file = self.path.open("r+b", buffering=0)
        self.columns, self._row = columns, rows[-1] if rows else {}
        self._row_start = sum(len(line) for line in lines[: len(rows)])


class MetricsCSVLogger(Logger):
    """Lightning logger that writes `<save_dir>/metrics.csv` and `<save_dir>/hparams.yaml`.

    One row per logged optimizer step. Columns: `step` (optimizer steps completed: 1 after the
    first, whatever the gradient accumulation), `tokens`, then the metrics as they are named, in the
    order in which they first appeared. Validation metrics fill the row of the step they were
    measured after.

    A run resumed in the same folder continues its file: rows after the resumed step are cut. A run
    that starts afresh keeps an earlier file as `metrics.csv.1` (`.2`, ...).

    A step's row is written before the step's checkpoint, so a checkpoint is never ahead of the
    file. Used without a Trainer, `log_metrics` takes the step it is given.
    """

    def __init__(self, save_dir: str | os.PathLike[str]) -> None:
        super().__init__()
        self._save_dir = os.fspath(save_dir)
        self.file = MetricsFile(Path(save_dir) / "metrics.csv")
        self._hparams: dict[str, Any] = {}
        self._trainer: Trainer | None = None

    @property
    def name(self) -> str:
        """No name: the folder is the run."""
        return ""

    @property
    def version(self) -> str:
        """No version: the folder is the run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return self._save_dir

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return self._save_dir

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write metrics into the row of the trainer's current optimizer step."""
        # The stream of batches is endless, so Lightning's `epoch` says nothing.
        measured = {name: value for name, value in metrics.items() if name != "epoch"}
        if self._trainer is not None:
            step = self._trainer.global_step
            # A validation's row needs its place on the token axis also where no training metrics
            # are due.
            if "tokens" not in measured and "tokens" in self._trainer.callback_metrics:
                measured["tokens"] = self._trainer.callback_metrics["tokens"].item()
        if measured:
            self.file.record(step or 0, measured)

    @rank_zero_only
    def log_hyperparams(self, params: Any = None, *args: Any, **kwargs: Any) -> None:
        """Write hyper-parameters to `hparams.yaml`, together with those of earlier calls."""
        self._hparams |= _plain(
            params if isinstance(params, Mapping | DictConfig) else vars(params)
        )
        path = Path(self._save_dir) / "hparams.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(self._hparams, sort_keys=False))

    @rank_zero_only
    def log_graph(self, model: LightningModule, input_array: Any = None) -> None:
        """Take hold of the trainer: Lightning hands loggers the module just before a run."""
        if self._trainer is not model.trainer:
            self._trainer = model.trainer
            self._trainer.callbacks = [_RunHooks(self), *self._trainer.callbacks]

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file."""
        self.file.close()


class _RunHooks(Callback):
    """Tells the logger where training starts, and writes a row before its checkpoint."""

    def __init__(self, logger: MetricsCSVLogger) -> None:
        self._logger = logger
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._logger.file.begin(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # Lightning writes a step's metrics after this hook, and checkpoints are saved in it: a kill
        # in between would leave a checkpoint whose step has no row. Lightning's own call then finds
        # the row written.
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        every = trainer.log_every_n_steps
        if stepped and every > 0 and trainer.global_step % every == 0:
            measured = trainer.logged_metrics
            training = {
                n: measured[n].item() for n in measured if not n.startswith(("val/", "test/"))
            }
            self._logger.log_metrics(training)


def _read(path: Path) -> tuple[list[str], list[Row]]:
    if not path.exists():
        return [], []
    # A kill in the middle of a write leaves a last line without its end.
    *lines, torn = path.read_text(encoding="utf-8").split("\n")
    if torn:
        rank_zero_info(f"{path}: the last line was cut off while it was written, and is dropped")
    columns, *rows = list(csv.reader(lines)) or [[]]
    if "step" not in columns or any(len(row) != len(columns) for row in rows):
        raise ValueError(
            f"{path}: not a metrics file of this program; move it out of the run's folder"
        )
    return columns, [dict(zip(columns, row, strict=True)) for row in rows]


def _line(columns: list[str], row: Row) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([row.get(name, "") for name in columns])
    return text.getvalue().encode()


def _cell(name: str, value: float) -> str:
    # Token counts arrive as floats; they are counts.
    if isinstance(value, int) or (name == "tokens" and float(value).is_integer()):
        return str(int(value))
    return repr(float(value))


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return aside


def _plain(value: Any) -> Any:
    if isinstance(value, DictConfig | ListConfig):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
