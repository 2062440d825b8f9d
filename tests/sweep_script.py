"""Stands for src/train.py in sweeps: the same settings, a result without training.

seed=13 crashes; data.seq_len=77 leaves a checkpoint and waits for a file `go` in the sweep's
folder, where a file `wait` makes all others wait. Each start adds a line to `starts` there.
"""

import os
import sys
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

from litmegalodon import checkpoints
from litmegalodon.runs.settings import check_settings
from litmegalodon.utils import errors
from litmegalodon.utils.command_line import prepare
from litmegalodon.utils.results import write_results

CONFIGS = Path(__file__).parents[1] / "configs"


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train.yaml")
def main(cfg: DictConfig) -> None:
    with errors.running():
        check_settings(cfg)
        folder = Path(cfg.paths.output_dir)
        with (folder.parent / "starts").open("a") as file:
            resumed = " again" if cfg.ckpt_path else ""
            file.write(f"{cfg.seed}{resumed}\n")
        if cfg.seed == 13:
            os.abort()
        if cfg.data.seq_len == 77:
            checkpoint = folder / "checkpoints" / "last-step=000001.ckpt"
            checkpoint.mkdir(parents=True, exist_ok=True)
            for name in checkpoints.FILES:
                (checkpoint / name).touch()
            print("waiting", file=sys.stderr, flush=True)
            while not (folder.parent / "go").exists():
                time.sleep(0.02)
        while (folder.parent / "wait").exists():
            time.sleep(0.02)
        lr = cfg.model.optimizer.lr
        write_results(folder, {"val/bpb": 2 + (lr - 4e-3) ** 2, "tokens": 1.0})


if __name__ == "__main__":
    with errors.composing():
        prepare(__file__)
        main()
