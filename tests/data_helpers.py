"""A tiny corpus, also as files, the rows it must give, and a trainer that is only a rank."""

import gzip
import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from litmegalodon.data import (
    ByteTokenizer,
    Document,
    LeftOut,
    ListShard,
    ListSource,
    TextDataModule,
    row_at,
)

BOS, EOS, IGNORED = 256, 257, -100

texts = st.lists(st.binary(max_size=12), min_size=1, max_size=5).filter(any)


def documents(texts):
    return [document(f"document {i}", text) for i, text in enumerate(texts)]


def splits_of(source):
    """All documents of a source, by split."""
    return {
        split: [item for shard in source.shards(split) for _, item in shard.documents()]
        for split in ("train", "val")
    }


def triples_of(text, reset_documents=True):
    """(token, target, reset) of every position of a document, text or (prompt, text)."""
    prompt, text = text if isinstance(text, tuple) else (b"", text)
    tokens = [BOS, *prompt, *text, EOS]
    predicted = range(len(prompt), len(tokens) - 1)
    return [
        (token, tokens[i + 1] if i in predicted else IGNORED, reset_documents and i == 0)
        for i, token in enumerate(tokens)
    ]


def expected_rows(texts, seq_len, reset_documents=True):
    """Rows as lists of (token, target, reset), one triple a position."""
    triples = [triple for text in texts for triple in triples_of(text, reset_documents)]
    padding_opens = reset_documents
    while len(triples) % seq_len:
        triples.append((EOS, IGNORED, padding_opens))
        padding_opens = False
    return [triples[i : i + seq_len] for i in range(0, len(triples), seq_len)]


def rows_of(batch):
    """The rows of a batch in the form of `expected_rows`."""
    parts = (batch[name].tolist() for name in ("tokens", "targets", "resets"))
    return [list(zip(*row, strict=True)) for row in zip(*parts, strict=True)]


class ShardedSource(ListSource):
    """Documents in several shards; a text is bytes, or (prompt, bytes), or a LeftOut."""

    def __init__(self, shards, val=(b"held out",)):
        self._shards = [
            ListShard(f"shard {s}", [document(f"{s}:{i}", text) for i, text in enumerate(texts)])
            for s, texts in enumerate(shards)
        ]
        train = [d for shard in self._shards for d in shard.items if isinstance(d, Document)]
        super().__init__(train, documents(val))

    def shards(self, split):
        return self._shards if split == "train" else super().shards(split)


def document(name, text):
    if isinstance(text, LeftOut):
        return text
    prompt, text = text if isinstance(text, tuple) else (b"", text)
    return Document(name, text, prompt)


def slot_documents(shards, slot, slots, seed=0, shuffle=True):
    """(epoch, document) that a slot reads from shards as they come, without end."""
    index = slot if len(shards) >= slots else 0
    while True:
        epoch = index // len(shards)
        if len(shards) >= slots:
            yield from ((epoch, d) for d in shards[row_at(index, len(shards), seed, shuffle)[1]])
            index += slots
        else:
            order = [row_at(index + i, len(shards), seed, shuffle)[1] for i in range(len(shards))]
            in_order = [d for number in order for d in shards[number]]
            yield from ((epoch, d) for d in in_order[slot::slots])
            index += len(shards)


def slot_rows(texts, seq_len, align=1, reset_documents=True):
    """Rows of (token, target, reset) of a slot that reads texts, or (prompt, text), without end."""
    triples = []
    for text in texts:
        triples += [(EOS, IGNORED, False)] * (-len(triples) % align)
        triples += triples_of(text, reset_documents)
        while len(triples) >= seq_len:
            yield triples[:seq_len]
            triples = triples[seq_len:]


def datamodule(
    train=(b"some text", b"more"), val=(b"held out",), rank=0, world=1, source=None, **settings
):
    settings = {"seq_len": 4, "batch_size": world, **settings}
    source = source or ListSource(documents(train), documents(val))
    module = TextDataModule(source, ByteTokenizer(), **settings)
    module.trainer = SimpleNamespace(
        distributed_sampler_kwargs={"rank": rank, "num_replicas": world} if world > 1 else None,
        global_rank=rank,
        world_size=world,
        overfit_batches=0,
        state=SimpleNamespace(fn="fit"),
    )
    return module


def compressed(data, compression):
    """`data` as gzip or zstd."""
    if compression == "gzip":
        return gzip.compress(data, 1, mtime=0)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, compression) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def as_jsonl(records):
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def as_parquet(columns, rows_of_a_group=2):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, row_group_size=rows_of_a_group)
    return sink.getvalue().to_pybytes()


def written_corpus(folder, format, texts, prompts=None):
    """Files of texts in `format`, as ".jsonl" or ".txt.gz"; their paths, in the texts' order.

    Each text is a file of its own in .txt and .md, and else a record in one, with columns `text`
    and `id`, or `prompt`, `completion` and `id` if there are prompts.
    """
    stem, compression = format, None
    for ending, name in ((".gz", "gzip"), (".zst", "zstd")):
        if format.endswith(ending):
            stem, compression = format.removesuffix(ending), name
    columns = {"text": texts} if prompts is None else {"prompt": prompts, "completion": texts}
    columns = {**columns, "id": list(range(len(texts)))}
    if stem in (".txt", ".md"):
        contents = {f"{i:04}": text.encode() for i, text in enumerate(texts)}
    elif stem == ".jsonl":
        rows = zip(*columns.values(), strict=True)
        contents = {"corpus": as_jsonl(dict(zip(columns, row, strict=True)) for row in rows)}
    else:
        contents = {"corpus": as_parquet(columns)}
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, data in contents.items():
        paths.append(folder / f"{name}{format}")
        paths[-1].write_bytes(compressed(data, compression) if compression else data)
    return paths


def texts_of(source):
    return {
        split: [bytes(item.text).decode() for item in items]
        for split, items in splits_of(source).items()
    }


def tree(folder, *names):
    """Text files, or JSON lines, that each hold their own name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"text": "{name}"}}\n')
    return folder
