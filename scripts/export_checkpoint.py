"""Export weights: python scripts/export_checkpoint.py ckpt_path=last output=export format=hf

From one process, whatever number wrote the checkpoint; `--help` lists the settings.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from litmegalodon import checkpoints
from litmegalodon.runs.settings import check_values
from litmegalodon.utils import errors
from litmegalodon.utils.command_line import prepare as prepare_command_line
from litmegalodon.utils.printing import say, short_path


def export_checkpoint(cfg: DictConfig) -> Path:
    """Read, write; returns the folder."""
    task_dir = Path(cfg.paths.log_dir) / cfg.last_of
    checkpoint = checkpoints.find("ckpt_path", str(cfg.ckpt_path), task_dir)
    output = Path(str(cfg.output)).expanduser()
    if output.exists():
        raise ValueError(f"output={output}: is there already; name another folder, or remove it")
    say(f"checkpoint: {short_path(checkpoint)}")
    # torch takes a second to import: only after the settings are checked.
    from litmegalodon.interop.exporting import export

    facts = export(checkpoint, output, cfg.format, cfg.dtype, round(cfg.max_shard_gb * 1e9))
    say(f"{facts.parameters:,} parameters, {facts.dtype}, {facts.bytes:,} bytes")
    say(f"{short_path(output)}: its README.md is the model card; the licence is yours to fill in")
    return output


@hydra.main(version_base="1.3", config_path="../configs", config_name="export_checkpoint.yaml")
def main(cfg: DictConfig) -> None:
    """Export one checkpoint."""
    with errors.running(cfg.extras.tracebacks is True):
        check_values(cfg)
        for name in ("ckpt_path", "output"):
            if OmegaConf.is_missing(cfg, name) or not cfg[name]:
                raise ValueError(f"{name}: must be given; --help says what it means")
        export_checkpoint(cfg)


if __name__ == "__main__":
    with errors.composing():
        prepare_command_line(__file__)
        main()
