"""Documents, tokens and the one global order in which they are trained.

A source gives documents (`documents`; `stdlib`, `files`, `hub`, `synthetic`, `listops`), a
tokenizer turns them into tokens (`tokenizer`), `packing` cuts them into rows, `order` says which
row comes when, and `datamodule` hands batches to Lightning. Importing this package costs neither
torch nor lightning: the data module is loaded when it is first asked for, and so is what reads
files.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from litmegalodon.data.documents import (
    Document,
    LeftOut,
    ListShard,
    ListSource,
    Shard,
    Source,
    compression_baselines,
    corpus_fingerprint,
)
from litmegalodon.data.listops import ListOpsSource
from litmegalodon.data.listops_tokenizer import ListOpsTokenizer
from litmegalodon.data.mixture import MixtureSource
from litmegalodon.data.order import permute, row_at
from litmegalodon.data.packing import PackedRows
from litmegalodon.data.sentencepiece import SentencePieceTokenizer
from litmegalodon.data.stdlib import StdlibSource
from litmegalodon.data.store import IGNORED, MemoryStore, TokenStore
from litmegalodon.data.tokenizer import ByteTokenizer, Tokenizer

if TYPE_CHECKING:
    from litmegalodon.data.datamodule import TextDataModule
    from litmegalodon.data.files import FilesSource
    from litmegalodon.data.hub import HubSource
    from litmegalodon.data.prepared import PreparedCorpus
    from litmegalodon.data.synthetic import SyntheticSource

# Loaded when first asked for: torch, or Arrow and what is read by it.
_LAZY = {
    "FilesSource": "files",
    "HubSource": "hub",
    "PreparedCorpus": "prepared",
    "SyntheticSource": "synthetic",
    "TextDataModule": "datamodule",
}

__all__ = [
    "IGNORED",
    "ByteTokenizer",
    "Document",
    "FilesSource",
    "HubSource",
    "LeftOut",
    "ListOpsSource",
    "ListOpsTokenizer",
    "ListShard",
    "ListSource",
    "MemoryStore",
    "MixtureSource",
    "PackedRows",
    "PreparedCorpus",
    "SentencePieceTokenizer",
    "Shard",
    "Source",
    "StdlibSource",
    "SyntheticSource",
    "TextDataModule",
    "TokenStore",
    "Tokenizer",
    "compression_baselines",
    "corpus_fingerprint",
    "permute",
    "row_at",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"litmegalodon.data.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
