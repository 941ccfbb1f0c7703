"""The types of the filter language, told from those of Arrow columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def type_name(kind: pa.DataType) -> str:
    """The name of a column's type in the filter language; other types are kept but not filtered on."""
    import pyarrow as pa

    tests = {
        "bool": pa.types.is_boolean,
        "int": pa.types.is_integer,
        "float": pa.types.is_floating,
        "date": pa.types.is_date,
        "timestamp": pa.types.is_timestamp,
    }
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string"
    return next((name for name, is_type in tests.items() if is_type(kind)), str(kind))
