"""A validation, by the trainer that the entry points make, is over every held-out byte."""

import math

import pytest
import torch
from hydra.utils import instantiate

from config_helpers import composed
from data_helpers import documents
from litmegalodon.data import ByteTokenizer, ListSource, TextDataModule
from litmegalodon.models import MegalodonState
from litmegalodon.runs.instantiate import open_trainer
from litmegalodon.runs.settings import check_settings

SEQ_LEN = 48
# Documents that fill more than a row, hold no byte at all, end with a row; the last batch has fewer
# rows than the others.
HELD_OUT = [bytes(range(48, 120)), b"", b"a short one", b"x" * 130]


def nats_of(module, texts):
    """Each stretch of a document that lies in one row, read alone at its place in the row."""
    total, place = 0.0, 0
    for text in texts:
        tokens = [ByteTokenizer.bos_id, *text, ByteTokenizer.eos_id]
        while tokens:
            end = min(len(tokens), SEQ_LEN - place)
            state = MegalodonState.fresh(module.config, 1, position=place)
            logits, _ = module.model(torch.tensor([tokens[:end]]), state)
            logp = logits[0].log_softmax(-1)
            total -= sum(logp[i, t].item() for i, t in enumerate(tokens[1 : end + 1]))
            tokens, place = tokens[end:], (place + end) % SEQ_LEN
    return total


def test_a_validation_predicts_every_held_out_byte_and_every_end_once(tmp_path):
    cfg = composed("experiment=debug", "~logger", "trainer.limit_val_batches=1.0", folder=tmp_path)
    check_settings(cfg)
    data = TextDataModule(
        ListSource(documents([b"some text"] * 20), documents(HELD_OUT)),
        ByteTokenizer(),
        seq_len=SEQ_LEN,
        batch_size=4,
        val_batch_size=3,
    )
    module = instantiate(cfg.model)
    counted, update = [], module.val_loss.update

    def count(nll, valid):
        counted.append(int(valid))
        update(nll, valid)

    module.val_loss.update = count
    with open_trainer(cfg) as trainer, torch.no_grad():
        (logged,) = trainer.validate(module, datamodule=data, verbose=False)
        nats = nats_of(module, HELD_OUT)
    size = sum(map(len, HELD_OUT))
    assert sum(counted) == size + len(HELD_OUT)
    assert logged["val/bpb"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
