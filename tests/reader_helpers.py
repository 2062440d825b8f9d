"""Files of every format, and what the readers give of one."""

from dataclasses import replace

from data_helpers import compressed
from litmegalodon.data import readers, utf8
from litmegalodon.data.columns import Columns
from litmegalodon.data.documents import Document
from litmegalodon.data.readers import CorpusFile

COMPRESSIONS = ["", ".gz", ".zst"]
RECORDS = [f"{stem}{end}" for stem in (".jsonl", ".parquet") for end in COMPRESSIONS]
TEXTS = [f"{stem}{end}" for stem in (".txt", ".md") for end in COMPRESSIONS]
NAMES = {"": None, ".gz": "gzip", ".zst": "zstd"}


def listed(path):
    return CorpusFile(path.name, str(path), path.stat().st_size)


def read(path, first=0, columns=None, **settings):
    """(number, document) with texts as bytes."""
    given = readers.documents(listed(path), columns or Columns(), first, **settings)
    return [(number, plain(item)) for number, item in given]


def plain(item):
    return replace(item, text=bytes(item.text)) if isinstance(item, Document) else item


def written(folder, name, data, compression=None):
    path = folder / name
    path.write_bytes(compressed(data, compression) if compression else data)
    return path


def only(path, **settings):
    """The one thing that a file gives."""
    [(_, item)] = read(path, **settings)
    return item


def make_blocks_small(patch):
    for module, name in ((readers, "BLOCK"), (readers, "BATCH"), (utf8, "BLOCK")):
        patch.setattr(module, name, 16)
