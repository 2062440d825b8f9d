"""ListOps by the Long Range Arena's rules, and a head of classes that learns from it."""

import re
import statistics
from collections import Counter

import pytest
import torch

from config_helpers import composed
from hard import hard_config
from litmegalodon.data import IGNORED, ListOpsSource, ListOpsTokenizer, TextDataModule
from litmegalodon.data.listops import value_of
from litmegalodon.models import Megalodon
from litmegalodon.runs.settings import check_settings
from train import train

SHORT = {"min_length": 10, "max_length": 100, "max_args": 5}
CALLS = {"[MIN": "min(", "[MAX": "max(", "[MED": "med(", "[SM": "mod("}


def plainly(text):
    """The value of a sequence as Python's own evaluator gives it."""
    words = ["),".join(["", ""]) if w == "]" else CALLS.get(w, f"{w},") for w in text.split()]
    names = {
        "min": lambda *v: min(v),
        "max": lambda *v: max(v),
        "med": lambda *v: int(statistics.median(v)),
        "mod": lambda *v: sum(v) % 10,
    }
    (value,) = eval(f"({''.join(words)})", {}, names)
    return value


def depth_and_arguments(text):
    """Levels of a sequence, that of its digits included, and the numbers of its arguments."""
    counts, open_lists, deepest = [], [], 0
    for word in text.split():
        if word == "]":
            counts.append(open_lists.pop())
            continue
        if open_lists:
            open_lists[-1] += 1
        deepest = max(deepest, len(open_lists) + 1)
        if word.startswith("["):
            open_lists.append(0)
    return deepest, counts


@pytest.mark.parametrize("settings", [{}, SHORT], ids=["arena", "short"])
def test_values_lengths_depth_and_arguments_are_those_of_the_rules(settings):
    source = ListOpsSource(**settings)
    found = [source.document("train", i) for i in range(60 if not settings else 400)]
    depths, arguments, operators = set(), [], Counter()
    for document in found:
        text = document.prompt.decode()
        assert document.text.decode() == str(plainly(text))
        assert source.min_length < len(text.split()) < source.max_length
        depth, counts = depth_and_arguments(text)
        depths.add(depth)
        arguments += counts
        operators.update(re.findall(r"\[\w+", text))
    assert max(depths) <= 10 and max(depths) >= 8
    assert {min(arguments), max(arguments)} == {2, source.max_args}
    total = sum(operators.values())
    assert {name: pytest.approx(1 / 4, abs=0.03) for name in CALLS} == {
        name: count / total for name, count in operators.items()
    }


def test_the_median_of_an_even_number_is_rounded_down():
    assert value_of(["[MED", "2", "9", "4", "7", "]"]) == 5
    assert value_of(["[MED", "1", "2", "]"]) == 1
    assert value_of(["[SM", "9", "[MAX", "4", "3", "]", "[MIN", "8", "7", "]", "]"]) == 0


def test_no_class_is_much_likelier_than_the_others():
    for settings, numbers in (({}, 300), (SHORT, 2000)):
        source = ListOpsSource(**settings)
        counts = Counter(source.document("train", i).text for i in range(numbers))
        assert len(counts) == 10
        # Smallest and largest values are likelier: they are what MIN and MAX of many come to.
        assert max(counts.values()) / numbers < 0.25


def test_sequences_are_functions_of_seed_split_and_number():
    first, second = ListOpsSource(**SHORT), ListOpsSource(seed=1, **SHORT)
    assert first.document("train", 5) == ListOpsSource(**SHORT).document("train", 5)
    # What is trained on does not change with the release of Python or of this package.
    assert first.document("train", 0).prompt == b"[MED 2 1 [MAX [MED 4 3 8 ] 5 4 ] 1 ]"
    assert len({s.document(p, 5).prompt for s in (first, second) for p in ("train", "val")}) == 4
    assert first.fingerprint != second.fingerprint != ListOpsSource(seed=1).fingerprint
    shards = ListOpsSource(documents=1001, val_documents=3, **SHORT).shards("train")
    assert [sum(1 for _ in shard.documents()) for shard in shards] == [1000, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_args": 1}, r"data\.source\.max_args=1: must be a whole number, at least 2"),
        ({"max_length": 504}, r"max_length=504: must be at least 5 above .*; set 505"),
        ({"max_depth": 3}, r"min_length=500: .*max_depth=3 .* give 122 symbols at most"),
    ],
)
def test_settings_that_no_sequence_fits_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ListOpsSource(**settings)


def test_a_digit_is_its_own_class_and_other_text_is_refused():
    tokenizer = ListOpsTokenizer()
    text = "[MAX 4 [SM 3 0 ] ]"
    assert tokenizer.encode(text).tolist() == [11, 4, 13, 3, 0, 14, 14]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == 17
    with pytest.raises(ValueError, match=r"data\.tokenizer: ListOps has no symbol 'words'"):
        tokenizer.encode("words")
    with pytest.raises(ValueError, match="token 17 is outside"):
        tokenizer.decode([17])


def data(**settings):
    source = ListOpsSource(documents=40, val_documents=7, **SHORT)
    defaults = {"seq_len": 100, "batch_size": 4, "cutting": "questions"}
    return TextDataModule(source, ListOpsTokenizer(), **(defaults | settings))


def test_a_row_is_one_sequence_whose_class_alone_is_predicted():
    module = data()
    batches = [batch for batch in module.val_dataloader()]
    rows = [row for b in batches for row in zip(b["tokens"], b["targets"], strict=True)]
    assert len(rows) == 8
    for i, (tokens, targets) in enumerate(rows[:7]):
        document = module.source.document("val", i)
        symbols = module.tokenizer.encode(document.prompt)
        end = len(symbols)
        assert tokens[0] == module.tokenizer.bos_id
        assert tokens[1 : end + 1].tolist() == symbols.tolist()
        assert set(tokens[end + 1 :].tolist()) <= {module.tokenizer.eos_id}
        assert (targets != IGNORED).nonzero().flatten().tolist() == [end]
        assert targets[end] == int(document.text)
    # The row that fills the last batch.
    assert (rows[7][1] == IGNORED).all()
    assert module.val_targets == module.val_bytes == 7
    filled = sum(len(d.prompt.split()) + 1 for d in module.validation_documents())
    assert module.summary()["val_utilisation"] == pytest.approx(filled / 700)
    batch = next(iter(module.train_dataloader()))
    assert int(batch["padding"]) == (batch["tokens"] == module.tokenizer.eos_id).sum()


def test_rows_too_short_for_a_question_and_streams_of_them_are_refused():
    with pytest.raises(ValueError, match=r"data\.seq_len=20: .* takes \d+ tokens; set data\.seq"):
        data(seq_len=20).setup()
    with pytest.raises(ValueError, match=r"data\.val_seq_len=9: data\.cutting=questions"):
        data(val_seq_len=9).setup("validate")
    with pytest.raises(ValueError, match=r"data\.cutting=questions: .*data\.streaming=false"):
        data(streaming=True)


def test_a_setting_without_effect_on_questions_is_said(monkeypatch):
    said = []
    monkeypatch.setattr("litmegalodon.data.datamodule.rank_zero_info", said.append)
    data().setup()
    assert said == []
    data(reset_documents=False).setup()
    assert said == ["data.reset_documents=false: has no effect on rows of one question"]


def test_a_single_question_shorter_than_its_row_can_be_trained_on():
    alone = TextDataModule(
        ListOpsSource(documents=1, val_documents=1, **SHORT),
        ListOpsTokenizer(),
        **{"seq_len": 100, "batch_size": 1, "cutting": "questions"},
    )
    batch = next(iter(alone.train_dataloader()))
    assert (batch["targets"] != IGNORED).sum() == 1


def test_a_head_with_too_few_classes_for_the_answers_is_refused(tmp_path):
    short = data()
    short.check_outputs(10)
    with pytest.raises(ValueError, match=r"output_size=9: .* hold the token 9; set at least 10"):
        short.check_outputs(9)
    few = ("data.source.documents=64", "data.source.val_documents=50", "data.batch_size=8")
    cfg = composed("experiment=listops_short", *few, "model.config.output_size=5", folder=tmp_path)
    check_settings(cfg)
    with pytest.raises(ValueError, match=r"model\.config\.output_size=5: the answers of"):
        train(cfg)


def test_the_best_checkpoint_of_the_experiment_is_that_of_most_right_answers(tmp_path):
    cfg = composed("experiment=listops", folder=tmp_path)
    assert cfg.callbacks.best_checkpoint.monitor == cfg.optimized_metric
    for wrong, message in (
        ("callbacks.best_checkpoint.mode=min", r"mode=min: keeps the lowest val/accuracy"),
        ("model._target_=litmegalodon.training.MegalodonModule", r"does not count right answers"),
    ):
        with pytest.raises(ValueError, match=message):
            check_settings(composed("experiment=listops", wrong, folder=tmp_path))


def test_a_head_of_classes_on_rows_that_predict_all_tokens_is_refused(tmp_path):
    cfg = composed("experiment=listops_short", "data.cutting=packed", folder=tmp_path)
    with pytest.raises(ValueError, match=r"output_size=10: each of the tokenizer's 17 ids"):
        check_settings(cfg)


def test_the_gradient_of_the_head_is_that_of_the_last_tokens_cross_entropy():
    torch.manual_seed(0)
    model = Megalodon(hard_config(vocab_size=17, output_size=10)).double()
    batch = next(iter(data(batch_size=3).train_dataloader()))
    nll, valid, _ = model.loss(batch["tokens"], batch["targets"], resets=batch["resets"])
    assert valid == 3
    nll.backward()
    head = model.output.output.weight
    kept = []
    model.output.final_norm.register_forward_hook(lambda *a: kept.append(a[-1][0].detach()))
    logits, _ = model(batch["tokens"], resets=batch["resets"])
    assert logits.shape[-1] == 10
    rows, places = (batch["targets"] != IGNORED).nonzero(as_tuple=True)
    features, classes = kept[0][rows, places], batch["targets"][rows, places]
    error = logits[rows, places].detach().softmax(-1)
    error[torch.arange(3), classes] -= 1
    torch.testing.assert_close(head.grad, error.T @ features)


LLAMA = pytest.param("listops_llama", marks=pytest.mark.slow)


@pytest.mark.parametrize("model", ["listops", LLAMA])
def test_the_experiment_trains_and_counts_right_answers(model, tmp_path):
    pytest.importorskip("transformers")
    sizes = ["model_dim=16", "ffn_hidden_dim=16", "num_layers=1"]
    sizes += ["z_dim=8", "value_dim=16"] if model == "listops" else []
    cfg = composed(
        "experiment=listops_short",
        f"model={model}",
        *(f"model.config.{size}" for size in sizes),
        *("data.source.documents=64", "data.source.val_documents=50", "data.batch_size=8"),
        *("model.scheduler.total_steps=2", "model.scheduler.warmup_steps=1", "logger=csv"),
        "callbacks.monitor=null",
        folder=tmp_path,
    )
    check_settings(cfg)
    metrics = train(cfg)
    assert metrics["val/accuracy"] * 50 == pytest.approx(round(metrics["val/accuracy"] * 50))
    assert metrics["val/loss"] == pytest.approx(2.3, abs=2.0)
