"""What a run would take, before it is paid for: python src/plan.py experiment=7b trainer.devices=8

Memory, traffic and time of a process on `plan.device`, told on any machine. The settings are those
of src/train.py, trainer.devices and trainer.num_nodes those of the machines that are not there.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from litmegalodon.planning.devices import DEVICES
from litmegalodon.planning.settings import check_plan, run_of
from litmegalodon.runs.setting_rules import DEGREES
from litmegalodon.runs.settings import check_batches, check_mesh, check_values
from litmegalodon.utils import errors
from litmegalodon.utils.command_line import prepare
from litmegalodon.utils.printing import say, short_path


def plan(cfg: DictConfig) -> list[str]:
    """The lines of the report; draws plan.png beside them."""
    machine = cfg.trainer.devices
    degrees = check_mesh(cfg, machine * cfg.trainer.num_nodes)
    if degrees is None:
        raise ValueError("trainer.strategy: a plan needs the degrees of ChunkParallelStrategy")
    check_batches(cfg, degrees.readers)
    run = run_of(cfg, degrees, machine, triton=True)
    # torch takes seconds to import: only after the settings are checked.
    from dataclasses import replace

    from litmegalodon.planning.picture import draw
    from litmegalodon.planning.report import report
    from litmegalodon.planning.sharded import elements

    run = replace(run, measured=elements(run.config, degrees, run.bf16_parameters))
    device = DEVICES[cfg.plan.device]
    draw(Path(cfg.paths.output_dir) / "plan.png", run)
    return list(report(run, device, cfg.plan.efficiency, cfg.plan.links))


def take_fewest(cfg: DictConfig, typed: Sequence[str]) -> None:
    """Where no number of GPUs is `typed`, plan for as few as share a row of the experiment."""
    names = ("trainer.devices=", "trainer.num_nodes=", "trainer.strategy.")
    if any(setting.lstrip("+").startswith(names) for setting in typed):
        return
    degrees = [cfg.trainer.strategy.get(name) or 1 for name in DEGREES]
    fewest = math.prod(degree for degree in degrees if degree > 0)
    if fewest > cfg.trainer.devices:
        cfg.trainer.devices = fewest
        say(f"trainer.devices={fewest}: as many as share a row; say how many GPUs there would be")


@hydra.main(version_base="1.3", config_path="../configs", config_name="plan.yaml")
def main(cfg: DictConfig) -> None:
    """Plan one run."""
    with errors.running(cfg.extras.tracebacks is True):
        # The data and their tokenizer need not be there yet.
        OmegaConf.resolve(cfg)
        check_values(cfg)
        check_plan(cfg)
        take_fewest(cfg, HydraConfig.get().overrides.task)
        folder = Path(cfg.paths.output_dir)
        lines = plan(cfg)
        (folder / "plan.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            say(line)
        say(f"run folder: {short_path(folder)}")


if __name__ == "__main__":
    with errors.composing():
        prepare(__file__)
        main()
