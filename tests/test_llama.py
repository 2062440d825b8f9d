"""The baseline is transformers' Llama, and does in the harness what a Megalodon does there."""

import subprocess
import sys

import pytest
import torch
from hydra.utils import instantiate

from config_helpers import composed
from golden_data import assert_equal
from inference_helpers import TOKENIZER
from litmegalodon.checkpoints.files import check_same_model
from litmegalodon.inference import Reader
from litmegalodon.models import LlamaConfig, config_of
from litmegalodon.models.span import Span
from litmegalodon.planning.settings import run_of
from litmegalodon.runs.hparams import count_parameters
from litmegalodon.runs.settings import check_settings
from runs import ROOT, kill_after, last_checkpoint, losses, metrics, run

SIZES = dict(vocab_size=31, num_layers=2, model_dim=16, num_heads=4, ffn_hidden_dim=24)
LENGTH = 40


def small(dtype=torch.float64, **changes):
    model = LlamaConfig(**(SIZES | {"init_std": 0.3} | changes)).build().to(dtype)
    model.initialise(1)
    return model


def tokens(rows, length=LENGTH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(31, (rows, length), generator=generator)


def gradients(model, nll):
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(nll, named.values()), strict=True))


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_kv_heads": 2}, {"share_emb": True}, {"rope_base": 500.0}],
    ids=lambda changes: "".join(changes) or "as it is",
)
def test_its_logits_are_those_of_transformers(changes):
    from transformers import LlamaForCausalLM

    from litmegalodon.models.llama import to_transformers

    ours = small(**changes)
    theirs = LlamaForCausalLM(to_transformers(ours.config)).double()
    names = {"embed": "model.embed_tokens", "output.final_norm": "model.norm"}
    names |= {"output.output": "lm_head"}
    weights = {}
    for name, value in ours.state_dict().items():
        module, _, kind = name.rpartition(".")
        weights[f"{names.get(module, f'model.{module}')}.{kind}"] = value
    theirs.load_state_dict(weights)
    # Its own angles are float32.
    assert_equal(ours(tokens(2))[0], theirs(tokens(2)).logits, 1e-5, "logits")
    assert sum(p.numel() for p in ours.parameters()) == theirs.num_parameters()


def test_a_packed_row_equals_its_documents_alone_with_its_gradients():
    model, words = small(), tokens(2)
    resets = torch.zeros(2, LENGTH, dtype=torch.bool)
    resets[0, [7, 8, LENGTH - 1]] = resets[1, 0] = True
    packed, total = model.loss(words, words, resets=resets)[0], 0.0
    for row, a, b in ((0, 0, 7), (0, 7, 8), (0, 8, 39), (0, 39, 40), (1, 0, 40)):
        part = words[row : row + 1, a:b]
        logits = model(words, None, resets)[0][row, a:b]
        assert_equal(logits, model(part)[0][0], name=f"document at {row}, {a}")
        total = total + model.loss(part, part)[0]
    assert_equal(packed, total, name="loss")
    want = gradients(model, total)
    for name, value in gradients(model, packed).items():
        assert_equal(value, want[name], name=name)


def test_a_document_changes_no_bit_of_another():
    model, words = small(torch.float32), tokens(1)
    resets = torch.zeros(1, LENGTH, dtype=torch.bool)
    resets[0, [10, 25]] = True
    other = words.clone()
    other[0, 10:25] = (other[0, 10:25] + 1) % 31
    want, got = (model(u, None, resets)[0] for u in (words, other))
    for part in (slice(0, 10), slice(25, LENGTH)):
        assert torch.equal(got[:, part], want[:, part])


def test_a_token_sees_none_after_it():
    model, words = small(), tokens(1)
    assert_equal(model(words)[0][:, :9], model(words[:, :9])[0], name="logits")
    last = model(words, last_only=True)[0]
    assert_equal(last, model(words)[0][:, -1:], name="the last one")


def test_blocks_computed_again_give_the_same_gradients_bit_for_bit():
    model, words = small(attention_dropout=0.2).train(), tokens(2)
    results = []
    for again in (False, True):
        for block in model.layers:
            block.activation_checkpointing = again
        torch.manual_seed(3)
        results.append(gradients(model, model.loss(words, words)[0]))
    for name, value in results[0].items():
        assert torch.equal(results[1][name], value), name


def test_the_seed_alone_decides_its_weights():
    with torch.device("meta"):
        model = LlamaConfig(**SIZES).build()
    model.to_empty(device="cpu")
    model.initialise(4)
    other = LlamaConfig(**SIZES).build()
    other.initialise(4)
    for name, value in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert not model.state_dict().keys() ^ dict(model.named_parameters()).keys()


def test_it_has_as_many_parameters_as_the_default_model(tmp_path):
    counts = {
        name: count_parameters(instantiate(composed(f"model={name}", folder=tmp_path).model.config))
        for name in ("megalodon", "mega", "llama")
    }
    want = counts["megalodon"]["total"]
    assert want == 992_768
    for name, count in counts.items():
        assert abs(count["total"] - want) < 0.01 * want, name


def test_its_config_comes_back_from_a_checkpoint():
    config = LlamaConfig(**SIZES)
    assert config_of(config.to_dict()) == config
    other = {k: v for k, v in SIZES.items() if k != "model_dim"}
    with pytest.raises(ValueError, match=r"^ckpt: is of another model, a megalodon, .* a llama$"):
        check_same_model(config.to_dict(), other, "ckpt")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.cutting=lanes", r"data\.cutting=lanes: .* set data\.cutting=packed"),
        ("model.impl=torch", r"model\.impl=torch: a Llama has no choice .* set auto"),
        (
            "trainer.strategy.chunk_parallel_size=2",
            r"trainer\.strategy\.chunk_parallel_size=2: .* set 1",
        ),
        (
            "model.config.num_heads=3",
            r"model\.config\.model_dim=128: must be a multiple of num_heads",
        ),
        ("model.config.num_kv_heads=3", r"model\.config\.num_kv_heads=3: must divide num_heads=4"),
        ("model.config.init_std=0", r"model\.config\.init_std=0: must be above 0"),
    ],
)
def test_what_it_cannot_do_is_refused(setting, message, tmp_path):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_settings(composed("model=llama", "trainer=sim", setting, folder=tmp_path))


def test_an_evaluation_by_chunks_is_refused(tmp_path):
    for model in (["model=llama"], ["model.config.chunk_size=null"]):
        settings = [*model, "evaluation=context", "ckpt_path=null"]
        with pytest.raises(ValueError, match=r"^evaluation=context: reads documents in chunks"):
            check_settings(composed(*settings, folder=tmp_path, name="eval"))


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("litmegalodon.models.llama_config.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^model=llama: .* pip install 'litmegalodon\[hf\]'$"):
        check_settings(composed("model=llama", folder=tmp_path))


def test_nothing_but_the_baseline_imports_transformers():
    code = "import sys, litmegalodon.models as m; m.Megalodon; m.LlamaConfig(1, 1, 2, 1, 1)"
    code += "; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", check=True)


def test_state_shared_rows_writing_and_plans_are_refused(tmp_path):
    model, words = small(), tokens(1)
    with pytest.raises(ValueError, match="a Llama carries no state"):
        model(words, object())
    with pytest.raises(ValueError, match="whole rows, which processes can't share"):
        model.loss(words, words, span=object.__new__(Span))
    with pytest.raises(ValueError, match=r"^a llama remembers nothing .* writes no text$"):
        Reader(model, TOKENIZER)
    cfg = composed("model=llama", folder=tmp_path, name="plan")
    with pytest.raises(ValueError, match=r"^model=llama: plans know .* Megalodon only$"):
        run_of(cfg, None, 1, triton=True)


RUN = (
    "experiment=debug",
    "model=llama",
    "model.config.num_layers=1",
    "model.config.model_dim=32",
    "model.config.ffn_hidden_dim=64",
    "extras.print_config=false",
    "trainer.limit_val_batches=2",
    "callbacks.report=null",
    "callbacks.last_checkpoint.every_n_steps=3",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run("train", *RUN, f"hydra.run.dir={folder}", cwd=folder.parent)
    return folder


@pytest.mark.slow
def test_killed_and_resumed_it_equals_uninterrupted_bit_for_bit_and_learns(whole, tmp_path):
    broken = tmp_path / "broken"
    again = (*RUN, f"hydra.run.dir={broken}")
    kill_after("train", *again, cwd=tmp_path, until=lambda: len(losses(broken)) >= 8)
    run("train", *again, f"ckpt_path={last_checkpoint(broken)}", cwd=tmp_path)
    kept = ("step", "train/loss", "train/grad_norm", "train/lr", "tokens", "val/bpb")
    got, want = ([{k: row[k] for k in kept} for row in metrics(f)] for f in (broken, whole))
    assert len(losses(whole)) == 20
    assert got == want
    assert float(losses(whole)[20]) < float(losses(whole)[1]) - 1.0


@pytest.mark.slow
def test_sharded_over_two_processes_it_is_the_same_model(whole, tmp_path):
    shared, steps = tmp_path / "shared", "trainer.max_steps=5"
    run("train", *RUN, "trainer=sim", steps, f"hydra.run.dir={shared}", cwd=tmp_path)
    got, want = ([float(loss) for loss in losses(folder).values()] for folder in (shared, whole))
    assert len(got) == 5
    assert got == pytest.approx(want[:5], rel=1e-5)
