"""Small models that read bytes, and what greedy decoding without a state would give."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from omegaconf import OmegaConf

from hard import hard_config, hard_model
from litmegalodon.data import ByteTokenizer
from litmegalodon.inference import Reader
from litmegalodon.models import Megalodon

TOKENIZER = ByteTokenizer()
BOS, EOS = TOKENIZER.bos_id, TOKENIZER.eos_id
# Two best logits that are nearer than this may change places between two ways of computing them.
NEAR = 1e-4


def byte_model(dtype: torch.dtype = torch.float64, seed: int = 0, **changes) -> Megalodon:
    """A model with hard parameters whose vocabulary holds the bytes."""
    model = hard_model(hard_config(vocab_size=264, **changes), dtype, seed).eval()
    with torch.no_grad():
        # It would end documents now and then.
        model.output.output.weight[EOS] = 0
    return model


def text_of(count: int, seed: int = 0) -> bytes:
    """So many bytes of lower-case letters."""
    generator = torch.Generator().manual_seed(seed)
    return bytes((97 + torch.randint(26, (count,), generator=generator)).tolist())


def reader(model: Megalodon, *texts: str | bytes, piece_tokens: int = 4096) -> Reader:
    """A reader that has read texts."""
    made = Reader(model, TOKENIZER, piece_tokens=piece_tokens)
    for text in texts:
        made.read(text)
    return made


@torch.no_grad()
def greedy(model: Megalodon, prompt: bytes, steps: int) -> tuple[list[int], int]:
    """Greedy tokens by reading everything again for each, and how many of them are certain."""
    tokens, certain = [BOS, *prompt], steps
    forbidden = [BOS, *range(TOKENIZER.vocab_size, model.config.vocab_size)]
    for step in range(steps):
        logits = model(torch.tensor([tokens]))[0][0, -1]
        logits[forbidden] = -torch.inf
        best = logits.topk(2).values
        if certain == steps and best[0] - best[1] < NEAR:
            certain = step
        tokens.append(int(logits.argmax()))
    return tokens[1 + len(prompt) :], certain


def tokens_of(made: Reader, steps: int, **settings) -> list[int]:
    """The tokens that a reader writes, one by one through its state."""
    tokens = []
    for _ in range(steps):
        list(made.generate(1, **settings))
        if made.ended != "max_new_tokens":
            break
        tokens.append(made.state.last)
    return tokens


def assert_equal_while_certain(got: Sequence[int], want: Sequence[int], certain: int) -> None:
    """Two greedy decodings agree up to the first step whose two best logits are near."""
    assert list(got[:certain]) == list(want[:certain])


def write_checkpoint(model: Megalodon, run: Path, tokenizer: dict | None = None) -> Path:
    """A checkpoint as training leaves it in a run's folder, without training."""
    path = run / "checkpoints" / "last-step=000020.ckpt"
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is .*")
        dcp.save({"state_dict": tensors, "note": "text"}, checkpoint_id=path, no_dist=True)
    meta = {"hyper_parameters": {"config": model.config.to_dict()}, "global_step": 20}
    torch.save(meta, path / "meta.pt")
    node = tokenizer or {"_target_": "litmegalodon.data.ByteTokenizer"}
    (run / ".hydra").mkdir()
    OmegaConf.save({"data": {"tokenizer": node}}, run / ".hydra" / "config.yaml")
    return path
