"""Lanes: a document of any length is trained on as if it were read at once."""

import pytest
import torch
import torch.distributed.checkpoint as dcp

from litmegalodon.checkpoints import META
from litmegalodon.data import ByteTokenizer, StdlibSource
from litmegalodon.models import Megalodon, MegalodonConfig
from runs import last_checkpoint, metrics, run

pytestmark = pytest.mark.slow

SEGMENTS, L = 64, 64


def test_a_document_read_in_lanes_has_the_loss_of_one_forward_over_it(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "out.py").write_text("held = 'out'\n")
    body = "".join(f"x{i} = {i * i}\n" for i in range(999))[: SEGMENTS * L - len("BOS# novel.py\n")]
    (source / "novel.py").write_text(body + "\n")
    documents = StdlibSource(0.001, 1.0, root=str(source)).shards("train")[0].items
    assert [len(document.text) for document in documents] == [SEGMENTS * L - 2]
    folder = tmp_path / "run"
    run(
        "train",
        "experiment=debug",
        "extras.print_config=false",
        "callbacks.report=null",
        f"data.source.root={source}",
        "data.source.validation_fraction=0.001",
        "data.source.max_validation_document=1.0",
        "data.cutting=lanes",
        "data.batch_size=1",
        "data.val_batch_size=1",
        f"data.seq_len={L}",
        f"trainer.max_steps={SEGMENTS}",
        # The weights stay as they are.
        "model.optimizer.lr=1e-30",
        f"hydra.run.dir={folder}",
        cwd=tmp_path,
    )
    rows = metrics(folder)
    # The document's end predicts nothing.
    valid = [L] * (SEGMENTS - 1) + [L - 1]
    in_lanes = sum(float(row["train/loss"]) * n for row, n in zip(rows, valid, strict=True))

    checkpoint = last_checkpoint(folder)
    config = torch.load(checkpoint / META, weights_only=True)["hyper_parameters"]["config"]
    model = Megalodon(MegalodonConfig(**config)).eval()
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    dcp.load({"state_dict": weights}, checkpoint_id=checkpoint, no_dist=True)
    tokenizer = ByteTokenizer()
    text = tokenizer.encode(documents[0].text).tolist()
    tokens = torch.tensor([[tokenizer.bos_id, *text, tokenizer.eos_id]])
    targets = torch.tensor([[*text, tokenizer.eos_id, -100]])
    with torch.no_grad():
        at_once, count, _ = model.loss(tokens, targets)
    assert count == sum(valid)
    assert in_lanes == pytest.approx(float(at_once), rel=1e-6)
    # It is the memory that makes them equal.
    with torch.no_grad():
        alone = sum(
            model.loss(t, y)[0]
            for t, y in zip(tokens.split(L, 1), targets.split(L, 1), strict=True)
        )
    assert float(alone) != pytest.approx(in_lanes, rel=1e-5)
