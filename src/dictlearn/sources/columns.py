"""Which of a row's fields make its document: rows come from JSON, parquet or a data set of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

from dictlearn.sources.left_out import ROWS

Row = Mapping[str, Any]


class Column(Protocol):
    """Makes one document of a row."""

    @property
    def fields(self) -> dict[str, str]:
        """By the key that names it, each field without which there is no document."""
        ...

    @property
    def reads(self) -> tuple[str, ...]:
        """All fields that are read, those that a row may lack among them."""
        ...

    @property
    def lacking(self) -> str:
        """What a row without a document is counted as."""
        ...

    @property
    def wants(self) -> str:
        """What the fields have to hold, for sentences."""
        ...

    def document(self, row: Row) -> str | None:
        """The row's document, None if the row has none."""
        ...


@final
@dataclass(frozen=True)
class TextColumn:
    """The text in one field, which may lie in another: `conversation.text`."""

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
    """A column by its name; None stays None, and no rows are looked for."""
    return TextColumn(field) if isinstance(field, str) else field


ABSENT = object()


def value_at(row: Row, field: str) -> Any:
    """The value of a field, or ABSENT.

    A dot leads into a field's own fields, unless it is part of a name. What lies in null is null.
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


def _there(row: Row, field: str) -> list[str]:
    """The fields that could have been meant: of the row, or of the field in it that was named."""
    first = field.split(".")[0]
    inside = row.get(first)
    if "." in field and isinstance(inside, Mapping):
        return [f"{first}.{name}" for name in inside]
    return list(map(str, row))


def top_columns(column: Column, names: Sequence[str]) -> list[str] | None:
    """The columns of a table that hold what is read; None if one that has to be there is not."""
    found: list[str] = []
    for field in column.reads:
        name = field if field in names else field.split(".")[0]
        if name in names:
            found.append(name)
        elif field in column.fields.values():
            return None
    return list(dict.fromkeys(found))


class WrongField(ValueError):
    """A row holds no document where one is looked for: a sentence with the fields that it does have."""

    def __init__(self, column: Column, row: Row, where: str):
        found = {key: value_at(row, field) for key, field in column.fields.items()}
        missing = [key for key, value in found.items() if value is ABSENT]
        key = missing[0] if missing else next(iter(found))
        if missing:
            there = _there(row, column.fields[key])
            said = f"has no such field, but {', '.join(there) or 'none at all'}"
        else:
            said = f"holds {type(found[key]).__name__}; want a field of {column.wants}"
        super().__init__(f"{key}={column.fields[key]}: {where} {said}")
