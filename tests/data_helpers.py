"""A tiny corpus, the rows it must give as plain loops, and a trainer that is only a rank."""

from types import SimpleNamespace

from hypothesis import strategies as st

from litmegalodon.data import ByteTokenizer, Document, ListSource, TextDataModule

BOS, EOS, IGNORED = 256, 257, -100

texts = st.lists(st.binary(max_size=12), min_size=1, max_size=5).filter(any)


def documents(texts):
    return [Document(f"document {i}", text) for i, text in enumerate(texts)]


def splits_of(source):
    """All documents of a source, by split."""
    return {
        split: [item for shard in source.shards(split) for _, item in shard.documents()]
        for split in ("train", "val")
    }


def expected_rows(texts, seq_len, reset_documents=True):
    """Rows as lists of (token, target, reset), one triple a position."""
    tokens = [token for text in texts for token in [BOS, *text, EOS]]
    triples = []
    for i, token in enumerate(tokens):
        following = tokens[i + 1] if i + 1 < len(tokens) else BOS
        target = IGNORED if following == BOS else following
        triples.append((token, target, reset_documents and token == BOS))
    padding_opens = reset_documents
    while len(triples) % seq_len:
        triples.append((EOS, IGNORED, padding_opens))
        padding_opens = False
    return [triples[i : i + seq_len] for i in range(0, len(triples), seq_len)]


def rows_of(batch):
    """The rows of a batch in the form of `expected_rows`."""
    parts = (batch[name].tolist() for name in ("tokens", "targets", "resets"))
    return [list(zip(*row, strict=True)) for row in zip(*parts, strict=True)]


def datamodule(train=(b"some text", b"more"), val=(b"held out",), rank=0, world=1, **settings):
    settings = {"seq_len": 4, "batch_size": world, **settings}
    module = TextDataModule(
        ListSource(documents(train), documents(val)), ByteTokenizer(), **settings
    )
    module.trainer = SimpleNamespace(
        distributed_sampler_kwargs={"rank": rank, "num_replicas": world} if world > 1 else None,
        overfit_batches=0,
        state=SimpleNamespace(fn="fit"),
    )
    return module
