"""The fields of a row that make its document, for rows of JSON, parquet or the hub's data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

from dictlearn.sources.left_out import ROWS

Row = Mapping[str, Any]


class Column(Protocol):
    """Makes a document from a row."""

    @property
    def fields(self) -> dict[str, str]:
        """The required fields, by the configuration's key for them."""
        ...

    @property
    def reads(self) -> tuple[str, ...]:
        """All fields that are read, including optional ones."""
        ...

    @property
    def lacking(self) -> str:
        """The reason in `LeftOut` for a row without a document."""
        ...

    @property
    def wants(self) -> str:
        """What the fields have to contain, for errors."""
        ...

    def document(self, row: Row) -> str | None:
        """The row's document, or None."""
        ...


@final
@dataclass(frozen=True)
class TextColumn:
    """The text in one field, which may be nested: `conversation.text`."""

    field: str
    lacking: str = ROWS
    wants: str = "text"

    @property
    def fields(self) -> dict[str, str]:
        return {"data.field": self.field}

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.field,)

    def document(self, row: Row) -> str | None:
        text = value_at(row, self.field)
        return text if isinstance(text, str) else None


def column_of(field: str | Column | None) -> Column | None:
    """A column for a field's name; None stays None, for plain text."""
    return TextColumn(field) if isinstance(field, str) else field


ABSENT = object()


def value_at(row: Row, field: str) -> Any:
    """The value of a field, or ABSENT.

    A dot separates the names of nested fields, unless a field's name contains it. A field of null is
    null.
    """
    if field in row:
        return row[field]
    value: Any = row
    for name in field.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping) or name not in value:
            return ABSENT
        value = value[name]
    return value


def _available(row: Row, field: str) -> list[str]:
    """The fields of the row, or for a nested `field` those beside it."""
    first = field.split(".")[0]
    nested = row.get(first)
    if "." in field and isinstance(nested, Mapping):
        return [f"{first}.{name}" for name in nested]
    return list(map(str, row))


def top_columns(column: Column, names: Sequence[str]) -> list[str] | None:
    """The columns of a table that `column` reads; None if a required one is missing."""
    columns: list[str] = []
    for field in column.reads:
        name = field if field in names else field.split(".")[0]
        if name in names:
            columns.append(name)
        elif field in column.fields.values():
            return None
    return list(dict.fromkeys(columns))


class WrongField(ValueError):
    """A row has no document; the message lists the row's fields."""

    def __init__(self, column: Column, row: Row, where: str):
        values = {key: value_at(row, field) for key, field in column.fields.items()}
        missing = [key for key, value in values.items() if value is ABSENT]
        key = missing[0] if missing else next(iter(values))
        if missing:
            available = _available(row, column.fields[key])
            reason = f"has no such field, but {', '.join(available) or 'none at all'}"
        else:
            reason = f"holds {type(values[key]).__name__}; want a field of {column.wants}"
        super().__init__(f"{key}={column.fields[key]}: {where} {reason}")
