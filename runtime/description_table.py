"""One table of a `model.toml`, read field by field: every refusal names the file, the table, the field and what it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runtime.errors import Code, PenstockError


class ModelFolderRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="MODEL_FOLDER_REFUSED"):
    """The folder does not describe a model."""


class DescriptionTable:
    """What a table holds. Nothing is taken that is of another kind than asked for, and nothing made up but a default."""

    def __init__(self, source: str, path: str, content: Mapping[str, Any]) -> None:
        self.source, self._path, self._content = source, path, content

    def refused(self, sentence: str) -> ModelFolderRefused:
        where = f"{self.source}: [{self._path}] " if self._path else f"{self.source}: "
        return ModelFolderRefused(where + sentence)

    def knows(self, fields: Sequence[str]) -> None:
        if unknown := sorted(set(self._content) - set(fields)):
            raise self.refused(f"{unknown[0]!r} is not a field; the fields are: {', '.join(sorted(fields))}")

    def has(self, field: str) -> bool:
        return field in self._content

    @property
    def fields(self) -> list[str]:
        return list(self._content)

    def items(self) -> list[tuple[str, Any]]:
        return list(self._content.items())

    def text(self, field: str, default: str | None = None) -> str:
        value = self._content.get(field, default)
        if not isinstance(value, str) or (default is None and not value):
            raise self.refused(f"{field} is {value!r}; a string is needed")
        return value

    def choice(self, field: str, allowed: Sequence[str], default: str | None = None) -> str:
        value = self.text(field, default)
        if value not in allowed:
            raise self.refused(f"{field} is {value!r}; it can be: {', '.join(allowed)}")
        return value

    def flag(self, field: str) -> bool:
        value = self._content.get(field, False)
        if not isinstance(value, bool):
            raise self.refused(f"{field} is {value!r}; it is true or false")
        return value

    def number(self, field: str) -> int:
        value = self._content.get(field, 0)
        if not _is_number(value):
            raise self.refused(f"{field} is {value!r}; a whole number from 0 is needed")
        return int(value)

    def amount(self, field: str) -> float:
        value = self._content.get(field, 0.0)
        if not isinstance(value, int | float) or isinstance(value, bool) or not (math.isfinite(value) and value >= 0):
            raise self.refused(f"{field} is {value!r}; a number from 0 is needed")
        return float(value)

    def numbers(self, field: str) -> list[int]:
        values = self.array(field)
        if not all(_is_number(value) for value in values):
            raise self.refused(f"{field} is {values!r}; whole numbers from 0 are needed")
        return values

    def texts(self, field: str) -> list[str]:
        values = self.array(field)
        if not all(isinstance(value, str) for value in values):
            raise self.refused(f"{field} is {values!r}; strings are needed")
        return values

    def shape(self, field: str) -> list[int]:
        sizes = self._content.get(field)
        if not isinstance(sizes, list) or not all(_is_number(size) or (type(size) is int and size == -1) for size in sizes):
            raise self.refused(f"{field} is {sizes!r}; it is a list of sizes, -1 for one that varies")
        return sizes

    def array(self, field: str) -> list[Any]:
        values = self._content.get(field, [])
        if not isinstance(values, list):
            raise self.refused(f"{field} is {values!r}; a list is needed")
        return values

    def table(self, field: str) -> DescriptionTable:
        value = self._content.get(field, {})
        if not isinstance(value, dict):
            raise self.refused(f"{field} is a table; write [{self._under(field)}]")
        return DescriptionTable(self.source, self._under(field), value)

    def tables(self, field: str, fields: Sequence[str] = ()) -> Iterator[DescriptionTable]:
        values = self._content.get(field, [])
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise self.refused(f"{field} is a list of tables; write [[{self._under(field)}]]")
        for value in values:
            table = DescriptionTable(self.source, self._under(field), value)
            if fields:
                table.knows(fields)
            yield table

    def _under(self, field: str) -> str:
        return f"{self._path}.{field}" if self._path else field


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
