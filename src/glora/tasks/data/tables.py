"""What text and image tables share: what separates values, and the rows of parquet files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from glora import registry
from glora.errors import DataError

__all__ = ["has_images", "named_labels", "parquet_rows", "separator_of"]

SEPARATORS = (",", ";", "\t")  # of a table whose name does not tell; the first that is in its header


def separator_of(header: str, kind: str) -> str:
    """What separates the values of a table, by its first line; `kind` is the ending of its name."""
    return "\t" if kind == ".tsv" else next((each for each in SEPARATORS if each in header), ",")


def parquet_rows(path: Path, *, most: int | None = None) -> list[dict[str, Any]]:
    """The rows of a parquet file, or the first ones; labels that it names by numbers have their names.

    Raises:
        DataError: It cannot be read.
    """
    parquet = registry.optional_import("pyarrow.parquet", extra="data", purpose="Reading parquet files")
    try:
        file = parquet.ParquetFile(path)
        named = _label_names(file.schema_arrow.metadata or {})
        batches = islice(file.iter_batches(most or 10_000), 1 if most else None)
        rows = [row for batch in batches for row in batch.to_pylist()]
    except Exception as error:  # pyarrow's own errors, and the system's
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{path} cannot be read: {reason}.", remedy="Copy it again.") from error
    return [named_labels(row, named) for row in rows]


def named_labels(row: dict[str, Any], names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The row with the names of its classes in place of their numbers; None where there is no class."""
    for column, known in names.items():
        value = row.get(column)
        if isinstance(value, int):
            row[column] = known[value] if 0 <= value < len(known) else None
    return row


def _label_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """The names of the classes of each column that has such, as the package datasets writes them down."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def has_images(record: Mapping[str, Any] | None) -> bool:
    """Whether a row holds images, as those that the package datasets writes to parquet."""
    return any(isinstance(value, Mapping) and {"bytes", "path"} <= value.keys() for value in (record or {}).values())
