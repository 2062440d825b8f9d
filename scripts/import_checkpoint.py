"""Import weights: python scripts/import_checkpoint.py from=reference path=... output=imported

`from` is reference, megalodon-hf or export; `--help` lists groups and settings. What it writes is a
run's folder: init_from=, src/eval.py and src/generate.py take it.
"""

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from litmegalodon.runs.settings import check_values
from litmegalodon.utils import errors
from litmegalodon.utils.command_line import prepare as prepare_command_line
from litmegalodon.utils.printing import say, short_path

GIVE_TOKENIZER = "as data/tokenizer=sentencepiece data.tokenizer.path=..."


def import_checkpoint(cfg: DictConfig) -> Path:
    """Read, check, write; returns the checkpoint."""
    source = str(cfg["from"])
    path, output = str(cfg.path), Path(str(cfg.output)).expanduser()
    from hydra.utils import instantiate

    from litmegalodon.interop.importing import as_model, read_foreign, write_checkpoint
    from litmegalodon.utils.whole_folder import whole_folder

    with whole_folder(output, "output") as folder:
        tokenizer = imported_tokenizer(cfg, folder, output)
        foreign = read_foreign(
            source, path, instantiate(cfg.model.config), cfg.accept_different_norm
        )
        for note in foreign.notes:
            say(note)
        if tokenizer.vocab_size > foreign.config.vocab_size:
            raise ValueError(
                f"data.tokenizer: has {tokenizer.vocab_size:,} ids and the model knows"
                f" {foreign.config.vocab_size:,} tokens; give the tokenizer that it was trained"
                f" with, {GIVE_TOKENIZER}"
            )
        # Vocabularies are rounded up by less than this.
        if source != "export" and tokenizer.vocab_size <= foreign.config.vocab_size - 128:
            say(
                f"data.tokenizer: has only {tokenizer.vocab_size:,} ids and the model knows"
                f" {foreign.config.vocab_size:,} tokens; if it was trained with another one, give"
                f" that, {GIVE_TOKENIZER}"
            )
        if cfg.accept_different_norm and source != "megalodon-hf":
            say("accept_different_norm=true: has no effect, only megalodon-hf's norm is another")
        model = as_model(foreign, f"path={path}")
        origin = {"from": source, "path": Path(path).name}
        write_checkpoint(model, tokenizer, run_settings(cfg, foreign.config), folder, origin)
    count = sum(parameter.numel() for parameter in model.parameters())
    say(f"{count:,} parameters, float32; tokenizer {tokenizer.fingerprint}")
    say(f"init_from={short_path(output)} or ckpt_path={short_path(output)} takes it")
    return output / "checkpoints" / "imported.ckpt"


def imported_tokenizer(cfg: DictConfig, folder: Path, output: Path) -> Any:
    """The tokenizer, an export's own one copied beside the checkpoint."""
    from hydra.utils import instantiate

    from litmegalodon.interop.exported import TOKENIZER_MODEL, read_config, tokenizer_of

    if cfg["from"] != "export":
        node = cfg.data.tokenizer
        if "path" in node:
            node.path = str(Path(node.path).expanduser().absolute())
        return instantiate(node)
    place, setting = Path(str(cfg.path)).expanduser(), f"path={cfg.path}"
    # Whether it is an export at all is the better thing to say first.
    read_config(place, setting)
    tokenizer = tokenizer_of(place, setting)
    if "path" in cfg.data.tokenizer:
        say("data.tokenizer: has no effect, an export brings the one that it was trained with")
    node = {"_target_": f"litmegalodon.data.{type(tokenizer).__name__}"}
    if hasattr(tokenizer, "model"):
        (folder / TOKENIZER_MODEL).write_bytes(tokenizer.model)
        node["path"] = str((output / TOKENIZER_MODEL).absolute())
    cfg.data.tokenizer = node
    return tokenizer


def run_settings(cfg: DictConfig, config: Any) -> dict[str, Any]:
    """What the configuration of a run with this model would hold."""
    # Whatever model= says: only a Megalodon is imported.
    target = f"litmegalodon.models.{type(config).__name__}"
    cfg.model.config = {"_target_": target, **config.to_dict()}
    parts = {name: cfg[name] for name in ("seed", "data", "model")}
    return {name: _plain(value) for name, value in parts.items()}


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


@hydra.main(version_base="1.3", config_path="../configs", config_name="import_checkpoint.yaml")
def main(cfg: DictConfig) -> None:
    """Import one checkpoint."""
    with errors.running(cfg.extras.tracebacks is True):
        check_values(cfg)
        for name in ("from", "path", "output"):
            if OmegaConf.is_missing(cfg, name) or not cfg[name]:
                raise ValueError(f"{name}: must be given; --help says what it means")
        import_checkpoint(cfg)


if __name__ == "__main__":
    with errors.composing():
        prepare_command_line(__file__)
        main()
