"""A model card from what a checkpoint and the files of its run say, and nothing else."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from litmegalodon import checkpoints

UNKNOWN = "unknown"
# Tables whose size follows from the vocabulary.
_TABLES = ("embed.weight", "output.output.weight")


@dataclass(frozen=True)
class Facts:
    """What a card says. None: the checkpoint does not tell.

    Attributes:
        name: of the run's folder.
        config: the network's.
        parameters, outside_tables: numbers of them, in all and without embedding and output matrix.
        bytes: of the weights as exported.
        format, dtype: of the export.
        tokenizer: kind and fingerprint.
        steps, tokens: that it was trained for.
        data: what it was trained on, setting by setting.
        validation: of the last validation up to this checkpoint, by metric, and the step it is of.
        began_from: the weights that training began with, if not fresh ones.
        imported: where the weights come from, if not from training here.
    """

    name: str
    config: dict[str, Any]
    parameters: int
    outside_tables: int
    bytes: int
    format: str
    dtype: str
    tokenizer: str
    steps: int | None
    tokens: int | None
    data: dict[str, Any] | None
    validation: dict[str, str] | None
    began_from: str | None
    imported: dict[str, str] | None

    @classmethod
    def of(
        cls,
        checkpoint: Path,
        meta: Mapping[str, Any],
        model: nn.Module,
        tokenizer: Any,
        format: str,
        dtype: str,
    ) -> "Facts":
        """Gather them.

        Args:
            model: the network as exported; its values are not looked at.
        """
        named = dict(model.named_parameters())
        count = sum(value.numel() for value in named.values())
        tables = sum(value.numel() for name, value in named.items() if name in _TABLES)
        kind = "bytes" if not hasattr(tokenizer, "model") else "SentencePiece"
        imported = meta.get("imported")
        run, settings = checkpoint.parent.parent, _settings(checkpoint)
        return cls(
            name=run.name,
            config=model.config.to_dict(),
            parameters=count,
            outside_tables=count - tables,
            bytes=sum(value.nbytes for value in named.values()),
            format=format,
            dtype=dtype,
            tokenizer=f"{kind}, {tokenizer.vocab_size:,} ids, fingerprint {tokenizer.fingerprint}",
            steps=None if imported else meta["global_step"],
            tokens=None if imported else meta.get("tokens"),
            data=None if imported else _data(settings, meta),
            validation=None if imported else _validation(run, meta["global_step"]),
            began_from=_public(settings.get("init_from")),
            imported=imported,
        )


def _settings(checkpoint: Path) -> dict[str, Any]:
    """The run's, as far as they are there."""
    path = checkpoints.run_config(checkpoint)
    try:
        saved = OmegaConf.load(path) if path else OmegaConf.create()
        found = OmegaConf.to_container(saved, resolve=False)
    except (OmegaConfBaseException, YAMLError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _data(settings: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """The source of the texts and how they were cut."""
    found: dict[str, Any] = {}
    data = settings.get("data")
    source = data.get("source") if isinstance(data, Mapping) else None
    if isinstance(source, Mapping):
        found["source"] = str(source.get("_target_", UNKNOWN)).rpartition(".")[2]
        found |= {f"source.{n}": _public(v) for n, v in source.items() if n != "_target_"}
    trained_on = next((v for n, v in meta.items() if n.endswith("DataModule")), {})
    for name in ("source.fingerprint", "seq_len", "cutting"):
        if name in trained_on:
            found[name] = trained_on[name]
    return {name: value for name, value in found.items() if value is not None} or None


def _public(value: Any) -> Any:
    """A setting as others may read it: of a path on this machine its last part."""
    if isinstance(value, str):
        of_machine = value.startswith(("/", "~", "..", "file:"))
        return Path(value).name if of_machine else value
    if isinstance(value, list):
        return [_public(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _public(item) for name, item in value.items()}
    return value


def _validation(run: Path, steps: int) -> dict[str, str] | None:
    """The last row of the run's metrics.csv with a validation that this checkpoint has seen."""
    found = None
    try:
        with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row.get("val/bpb") and row.get("step") and int(row["step"]) <= steps:
                    named = {n: v for n, v in row.items() if n and n.startswith("val/") and v}
                    found = named | {"step": row["step"]}
    except (OSError, ValueError, csv.Error):
        return None
    return found


def model_card(facts: Facts) -> str:
    """README.md of an export."""
    lines = [
        "---",
        "library_name: litmegalodon",
        "pipeline_tag: text-generation",
        "tags: [megalodon, long-context]",
        "---",
        "",
        f"# {facts.name}",
        "",
        "A MEGALODON language model (arXiv 2404.08801): its memory is a state of fixed size, so"
        " that text of any length can be read.",
        "",
        *_table({**_size(facts), **_training(facts)}),
        "",
        "## Load it",
        "",
        *_loading(facts),
        "",
        "## Data",
        "",
        *(_table(facts.data) if facts.data else [f"What it was trained on is {UNKNOWN}."]),
        "",
        "## Configuration",
        "",
        *_table(facts.config),
        "",
        "## Limits and licence",
        "",
        f"- Licence: {UNKNOWN}. The author has to fill it in, here and as `license:` at the top.",
        f"- Intended use, languages, biases and safety: {UNKNOWN}; nothing of it was measured.",
        "- The text it writes was not checked by anyone.",
    ]
    return "\n".join(lines) + "\n"


def _size(facts: Facts) -> dict[str, str]:
    matrices = "" if facts.dtype == "float32" else "; CEMA and norms float32"
    return {
        "parameters": f"{facts.parameters:,}, {facts.outside_tables:,} outside the embeddings",
        "weights": f"{facts.dtype}{matrices}, {facts.bytes:,} bytes",
        "tokenizer": facts.tokenizer,
    }


def _training(facts: Facts) -> dict[str, str]:
    if facts.imported:
        origin = ", ".join(f"{name} {value}" for name, value in facts.imported.items())
        return {"imported": f"{origin}; its training and quality are {UNKNOWN} here"}
    found = {
        "optimizer steps": UNKNOWN if facts.steps is None else f"{facts.steps:,}",
        "tokens trained on": UNKNOWN if facts.tokens is None else f"{facts.tokens:,}",
    }
    if facts.began_from:
        found["began from"] = f"the weights of {facts.began_from}, whose training is not counted"
    if facts.validation is None:
        return found | {"validation": UNKNOWN}
    step = facts.validation["step"]
    for name, value in facts.validation.items():
        if name != "step":
            found[name] = f"{float(value):.4f} after step {step}, on held-out text of the same data"
    return found


def _loading(facts: Facts) -> list[str]:
    if facts.format == "reference":
        return [
            "`consolidated.pth` with `config.json` and `consolidate_config.json` beside it is the"
            " form of the released reference; `scripts/import_checkpoint.py from=reference` of"
            " litmegalodon takes it too."
        ]
    own = [
        "from litmegalodon.inference import load_model",
        "",
        'model, tokenizer = load_model(".")',
    ]
    if facts.format == "safetensors":
        return ["```python", *own, "```"]
    return [
        "```python",
        "import litmegalodon.interop.hf  # registers the classes; no code is in this folder",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained(".")',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        'prompt = tokenizer("def main():", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=100)[0]))",
        "```",
        "",
        "or without transformers:",
        "",
        "```python",
        *own,
        "```",
    ]


def _table(rows: Mapping[str, Any]) -> list[str]:
    body = [f"| {name} | {str(value).replace('|', '/')} |" for name, value in rows.items()]
    return ["| | |", "| --- | --- |", *body]
