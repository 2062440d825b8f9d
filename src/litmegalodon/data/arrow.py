"""Text in Arrow's tables, which Parquet and Hugging Face data sets give."""

import pyarrow as pa

from litmegalodon.data.columns import Columns


def no_text(schema: pa.Schema, columns: Columns) -> str | None:
    """What to say of a table where one of the columns is no text by its type; None if all are."""
    kinds = dict(zip(schema.names, schema.types, strict=True))
    for setting, column in zip(columns.settings, columns.names, strict=True):
        if not _is_text(kinds[column]):
            texts = [name for name, kind in kinds.items() if _is_text(kind)]
            others = f"one of {', '.join(map(repr, texts))}" if texts else "a column of text"
            return (
                f"has {kinds[column]} in column {column!r}, not text;"
                f" set data.source.{setting} to {others}"
            )
    return None


def texts_of(batch: pa.RecordBatch, columns: Columns) -> list[pa.Array]:
    """The columns as arrays of bytes, not yet known to be UTF-8."""
    arrays = [batch.column(batch.schema.names.index(column)) for column in columns.names]
    return [
        (array.dictionary_decode() if pa.types.is_dictionary(array.type) else array).cast(
            pa.large_binary()
        )
        for array in arrays
    ]


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    # Writers that know no strings put text into binary columns; one of nulls alone has no type.
    types = pa.types
    return (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_null(kind)
    )
