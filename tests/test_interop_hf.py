"""A Hugging Face model and tokenizer that give what this project's own give."""

import importlib.util
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
)

import litmegalodon.interop.hf as hf
from golden_data import assert_equal
from inference_helpers import BOS, EOS, TOKENIZER, byte_model, greedy, text_of, write_checkpoint
from interop_helpers import assert_same_weights
from litmegalodon.inference import Reader, load_model
from litmegalodon.interop.exporting import export

TOLERANCE = 1e-5
# Of unequal lengths, up to several chunks of 16 and exactly one and two of them.
LENGTHS = (1, 5, 16, 32, 37, 50)


@pytest.fixture(scope="module")
def own():
    return byte_model(torch.float32)


@pytest.fixture(scope="module")
def folder(own, tmp_path_factory):
    place = tmp_path_factory.mktemp("hf")
    export(write_checkpoint(own, place / "run"), place / "export", "hf")
    return place / "export"


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def batch(tokenizer):
    """Texts of unequal length, padded on the left."""
    texts = [text_of(count, count).decode() for count in LENGTHS]
    return texts, tokenizer(texts, return_tensors="pt", padding=True)


def tokens_of(text):
    return torch.tensor([[BOS, *TOKENIZER.encode(text).tolist()]])


@torch.no_grad()
def own_logits(own, text):
    return own(tokens_of(text))[0][0]


def test_the_registered_classes_load_an_export_with_no_code_in_it(folder, model, own):
    assert isinstance(model, hf.MegalodonForCausalLM)
    assert type(AutoConfig.from_pretrained(folder)) is hf.MegalodonConfig
    assert {file.suffix for file in folder.iterdir()} == {".json", ".md", ".safetensors"}
    assert "auto_map" not in (folder / "config.json").read_text()
    assert_same_weights(model.model, own)
    assert model.config.hidden_size == own.config.model_dim
    placed = AutoModelForCausalLM.from_pretrained(folder, device_map=None, trust_remote_code=False)
    assert_same_weights(placed.model, own)


@torch.no_grad()
def test_logits_are_our_own_s(model, own, tokenizer):
    text = text_of(75).decode()
    assert_equal(model(**tokenizer(text, return_tensors="pt")).logits[0], own_logits(own, text), 0)


@torch.no_grad()
@pytest.mark.parametrize("side", ("left", "right"))
def test_padding_is_invisible(model, own, tokenizer, batch, side):
    texts, _ = batch
    given = tokenizer(list(texts), return_tensors="pt", padding=True, padding_side=side)
    logits = model(**given).logits
    for row, text in enumerate(texts):
        kept = given.attention_mask[row].bool()
        assert_equal(logits[row, kept], own_logits(own, text), TOLERANCE, f"row {row}")
    # Nor does it matter what it is made of.
    other = given.input_ids.masked_fill(given.attention_mask == 0, 7)
    again = model(other, attention_mask=given.attention_mask).logits
    assert torch.equal(logits[given.attention_mask.bool()], again[given.attention_mask.bool()])


@torch.no_grad()
def test_a_cache_goes_on_from_padded_rows_as_from_texts_alone(model, own, batch):
    texts, given = batch
    more = torch.randint(0, 256, (len(texts), 20), generator=torch.Generator().manual_seed(1))
    cache = model(**given).past_key_values
    assert cache.state.position.tolist() == [length + 1 for length in LENGTHS]
    mask = torch.cat([given.attention_mask, torch.ones_like(more)], 1)
    first = model(more[:, :9], mask[:, :-11], past_key_values=cache)
    second = model(more[:, 9:], mask, past_key_values=first.past_key_values)
    logits = torch.cat([first.logits, second.logits], 1)
    for row, text in enumerate(texts):
        tokens = torch.cat([tokens_of(text), more[row : row + 1]], 1)
        assert_equal(logits[row], own(tokens)[0][0, -20:], TOLERANCE, f"row {row}")
        alone = own(tokens)[1].tensors()
        for name, value in second.past_key_values.state.row(row, 16).tensors().items():
            assert_equal(value.double(), alone[name].double(), 1e-4, f"row {row} {name}")
    # A cache is a value: it can be gone on from twice.
    assert_equal(model(more[:, :9], past_key_values=cache).logits, first.logits, 0)


@torch.no_grad()
def test_masks_that_hide_what_no_padding_is_are_refused(model):
    tokens = torch.randint(0, 256, (2, 6))
    for mask, message in (
        ([[1, 1, 0, 1, 1, 1], [1] * 6], "hides tokens amid a row"),
        ([[0] * 6, [1] * 6], "hides a whole row"),
        ([[1] * 5, [1] * 5], "has shape"),
    ):
        mask = torch.tensor(mask)
        mask[1, 0] = 0
        with pytest.raises(ValueError, match=f"attention_mask.*{message}"):
            model(tokens, mask)
    behind = model(tokens, torch.tensor([[1] * 6, [1] * 3 + [0] * 3])).past_key_values
    with pytest.raises(ValueError, match=r"padding stands after its text.*pad on the left"):
        model(tokens, past_key_values=behind)
    cache = model(tokens).past_key_values
    # Also where a mask of another shape hides nothing.
    for shape, past in (((2, 5), None), ((2, 1, 6, 6), None), ((1, 6), None), ((2, 11), cache)):
        with pytest.raises(ValueError, match=r"attention_mask has shape .*must be \[2, 6\]"):
            model(tokens, torch.ones(shape), past_key_values=past)
    for given in ({"logits_to_keep": torch.tensor([1])}, {"logits_to_keep": 1, "labels": tokens}):
        with pytest.raises(ValueError, match=r"logits_to_keep=.*: must be how many last tokens"):
            model(tokens, **given)
    with pytest.raises(ValueError, match="hides tokens after those of past_key_values"):
        model(tokens, torch.tensor([[1] * 12, [1] * 8 + [0] * 4]), past_key_values=cache)
    for name in ("inputs_embeds", "output_attentions", "output_hidden_states"):
        with pytest.raises(ValueError, match=f"{name}.*no use for it"):
            model(tokens, **{name: True})
    with pytest.raises(ValueError, match="input_ids: is needed"):
        model()


@torch.no_grad()
def test_padding_before_a_text_is_refused_where_attention_has_no_chunks():
    own = byte_model(torch.float32, chunk_size=None)
    model = hf.MegalodonForCausalLM(hf.MegalodonConfig(**own.config.to_dict())).eval()
    model.model.load_state_dict(own.state_dict())
    tokens = torch.randint(0, 256, (2, 40))
    assert_equal(model(tokens).logits, own(tokens)[0], 0)
    mask = torch.ones_like(tokens)
    mask[1, :3] = 0
    with pytest.raises(ValueError, match=r"attention_mask: .*model.config.chunk_size=null"):
        model(tokens, mask)


def test_greedy_texts_of_a_padded_batch_are_those_of_our_own_reader(model, own, tokenizer, batch):
    texts, given = batch
    written = model.generate(**given, max_new_tokens=12, do_sample=False)
    uncached = model.generate(**given, max_new_tokens=12, do_sample=False, use_cache=False)
    width = given.input_ids.shape[1]
    for row, text in enumerate(texts):
        wanted, certain = greedy(own, text.encode(), 12)
        assert written[row, width:].tolist()[:certain] == wanted[:certain]
        assert uncached[row, width:].tolist()[:certain] == wanted[:certain]
    assert certain > 3


def test_our_reader_and_generate_write_the_same_text(model, own, tokenizer):
    reader = Reader(own, TOKENIZER)
    reader.read("def main():")
    wanted = "".join(reader.generate(20, temperature=0))
    given = tokenizer("def main():", return_tensors="pt")
    written = model.generate(**given, max_new_tokens=20, do_sample=False)[0]
    text = tokenizer.decode(written, skip_special_tokens=True)
    assert text[: 11 + len(wanted)] == "def main():" + wanted


@torch.no_grad()
def test_beams_reorder_the_memory(model, batch):
    texts, given = batch
    settings = {"num_beams": 4, "max_new_tokens": 10, "do_sample": False}
    cached = model.generate(**given, **settings, return_dict_in_generate=True, output_scores=True)
    without = model.generate(
        **given, **settings, use_cache=False, return_dict_in_generate=True, output_scores=True
    )
    assert torch.equal(cached.sequences, without.sequences)
    assert_equal(cached.sequences_scores, without.sequences_scores, TOLERANCE)
    # The score of a beam is that of its tokens, read anew.
    row, width = len(texts) - 1, given.input_ids.shape[1]
    tokens = cached.sequences[row : row + 1]
    logits = model(tokens).logits
    drawn = tokens[0, width:]
    taken = logits.log_softmax(-1)[0, width - 1 : -1].gather(-1, drawn[:, None]).sum()
    assert_equal(cached.sequences_scores[row], taken / len(drawn), 1e-4)


def test_sampling_draws_no_id_that_is_no_text(model, tokenizer):
    given = tokenizer(["a", "b"], return_tensors="pt", padding=True)
    torch.manual_seed(0)
    written = model.generate(
        **given, max_new_tokens=40, do_sample=True, temperature=3.0, num_return_sequences=8
    )[:, 2:]
    assert len(written.unique(dim=0)) > 8
    assert set(written.flatten().tolist()) <= {*range(256), EOS}


def test_generation_goes_on_from_a_cache_it_returned(model, tokenizer):
    given = tokenizer("def main():", return_tensors="pt")
    settings = {"do_sample": False, "return_dict_in_generate": True}
    whole = model.generate(**given, max_new_tokens=12, **settings).sequences
    first = model.generate(**given, max_new_tokens=5, **settings)
    rest = model.generate(
        first.sequences, past_key_values=first.past_key_values, max_new_tokens=7, **settings
    )
    assert torch.equal(rest.sequences, whole)


def test_the_loss_is_our_own_and_has_its_gradients(model, own, tokenizer, batch):
    texts, given = batch
    labels = given.input_ids.masked_fill(given.attention_mask == 0, -100)
    model.zero_grad()
    out = model(**given, labels=labels)
    out.loss.backward()
    assert out.past_key_values is None
    trained = byte_model(torch.float32)
    nll, count = 0, 0
    for text in texts:
        tokens = tokens_of(text)
        if tokens.shape[1] > 1:
            part, valid, _ = trained.loss(tokens[:, :-1], tokens[:, 1:])
            nll, count = nll + part, count + valid
    (nll / count).backward()
    assert_equal(out.loss, nll / count, TOLERANCE)
    gradients = dict(trained.named_parameters())
    for name, parameter in model.model.named_parameters():
        assert_equal(parameter.grad, gradients[name].grad, 1e-4, name)
    assert_equal(model(**given, labels=labels, num_items_in_batch=7).loss, nll / 7, TOLERANCE)
    # Also where the labels of padding were left in.
    careless = model(**given, labels=given.input_ids).loss
    assert_equal(careless, nll / count, TOLERANCE)
    model.zero_grad()


def test_large_logits_are_not_made_to_train_on(model, batch, monkeypatch):
    _, given = batch
    labels = given.input_ids.masked_fill(given.attention_mask == 0, -100)
    wanted = model(**given, labels=labels).loss
    monkeypatch.setattr("litmegalodon.interop.hf.modeling.MAX_LOGITS", 100)
    model.train()
    out = model(**given, labels=labels)
    model.eval()
    assert out.logits is None
    assert_equal(out.loss, wanted, TOLERANCE)


def test_saving_and_loading_is_a_round_trip_that_our_own_loader_reads(
    model, tokenizer, own, tmp_path
):
    model.save_pretrained(tmp_path, max_shard_size="6KB")
    tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same_weights(again.model, own)
    assert again.config.own() == model.config.own()
    assert again.config.eos_token_id == model.config.eos_token_id
    assert again.generation_config.suppress_tokens == model.generation_config.suppress_tokens
    assert AutoTokenizer.from_pretrained(tmp_path)("a\u00e9").input_ids == [BOS, 97, 195, 169]
    assert_same_weights(load_model(tmp_path)[0], own)


def test_bfloat16_keeps_cema_and_norms_in_float32(folder, own, tokenizer, tmp_path):
    wanted = byte_model(torch.float32).to(torch.bfloat16)
    given = tokenizer("def main():", return_tensors="pt")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    cast = AutoModelForCausalLM.from_pretrained(folder).to(torch.bfloat16)
    for half in (loaded, cast):
        assert_same_weights(half.model, wanted)
        assert {p.dtype for p in half.parameters()} == {torch.bfloat16, torch.float32}
        with torch.no_grad():
            assert torch.equal(half(**given).logits, wanted(given.input_ids)[0])
    loaded.save_pretrained(tmp_path)
    assert_same_weights(AutoModelForCausalLM.from_pretrained(tmp_path).model, wanted)


def test_a_shared_embedding_stays_shared(tmp_path):
    shared = byte_model(torch.float32, share_emb=True)
    export(write_checkpoint(shared, tmp_path / "run"), tmp_path / "export", "hf")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert loaded.model.output.output.weight is loaded.model.embed.weight
    assert_same_weights(loaded.model, shared)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert again.model.output.output.weight is again.model.embed.weight
    assert_same_weights(again.model, shared)


def test_a_new_model_starts_as_ours_does_and_so_does_what_a_file_lacks(model, folder, tmp_path):
    torch.manual_seed(3)
    new = AutoModelForCausalLM.from_config(model.config)
    norms = [p for name, p in new.named_parameters() if name.endswith("timenorm.weight")]
    assert all(torch.equal(norm, torch.zeros_like(norm)) for norm in norms)
    table = new.model.embed.weight
    assert abs(table.std().item() * table.shape[1] ** 0.5 - 1) < 0.1
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mega.cema.theta"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    partly = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(partly.model.embed.weight, model.model.embed.weight)
    theta = partly.model.layers[0].mega.cema.theta.flatten().sigmoid()
    dim = len(theta)
    frequencies = dim ** -(torch.arange(1, dim + 1).double() / dim)
    assert_equal(theta.sort().values, frequencies.sort().values, 1e-4)


def test_foreign_configs_and_wrong_sizes_are_refused(folder, tmp_path):
    settings = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"model_type": "megalodon"}))
    with pytest.raises(ValueError, match="megalodon"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model.config.z_dim=33: must be a multiple"):
        hf.MegalodonConfig(z_dim=33, num_heads=2)


def test_a_collator_s_batches_train_it(folder, tokenizer):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    rows = [tokenizer(text_of(count, 3).decode()) for count in (20, 33, 12, 7)]
    batch = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)(rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_without_transformers_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'litmegalodon\[hf\]'"):
        importlib.reload(hf)
