"""JSON and CSV files of results, read field by field.

Every error names the file, the key and what was expected. Knows nothing of what the fields mean
(demo/runs.py, demo/evaluation.py).

Errors: ResultError > ResultMissing.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ResultError(ValueError):
    """A file of results cannot be used; the text names file and key."""


class ResultMissing(ResultError):  # noqa: N818 - named for what happened, as the rest of the tree
    """There is no such file: it was not measured. The text is fit for a page: it has no path of a machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fields:
    """An object of a JSON file. where: the file and the way to this object, for errors."""

    values: Mapping[str, Any]
    where: str

    def number(self, name: str) -> float:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, "a number")
        return float(value)

    def count(self, name: str) -> int:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, "a whole number")
        return value

    def flag(self, name: str) -> bool:
        value = self._get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def text(self, name: str) -> str:
        value = self._get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "text")
        return value

    def under(self, name: str) -> Fields:
        """The object at `name`."""
        value = self._get(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return Fields(values=value, where=f"{self.where} {name}:")

    def each(self, name: str) -> Iterator[tuple[str, Fields]]:
        """The objects by their names in the object at `name`."""
        inner = self.under(name)
        return ((key, inner.under(key)) for key in inner.values)

    def items(self, name: str) -> Iterator[Fields]:
        """The objects of the list at `name`."""
        for index, value in enumerate(self._list(name)):
            if not isinstance(value, dict):
                raise self._wrong(f"{name}[{index}]", "an object")
            yield Fields(values=value, where=f"{self.where} {name}[{index}]:")

    def numbers(self, name: str) -> tuple[float, ...]:
        values = self._list(name)
        if not all(_is_number(value) for value in values):
            raise self._wrong(name, "a list of numbers")
        return tuple(float(value) for value in values)

    def table(self, name: str) -> tuple[tuple[float, ...], ...]:
        """A list of lists of numbers, all of one length."""
        rows = self._list(name)
        is_table = all(isinstance(row, list) and all(map(_is_number, row)) for row in rows)
        if not is_table or len({len(row) for row in rows}) > 1:
            raise self._wrong(name, "a list of equally long lists of numbers")
        return tuple(tuple(float(value) for value in row) for row in rows)

    def _list(self, name: str) -> Sequence[Any]:
        value = self._get(name)
        if not isinstance(value, list):
            raise self._wrong(name, "a list")
        return value

    def _get(self, name: str) -> Any:
        if name not in self.values:
            raise ResultError(f"{self.where} {name} is missing: write the file again")
        return self.values[name]

    def _wrong(self, name: str, expected: str) -> ResultError:
        return ResultError(f"{self.where} {name} must be {expected}: write the file again")


def read_json(path: Path) -> Fields:
    """The object that a JSON file holds."""
    text = _read(path)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ResultError(f"{path}: no JSON ({error}): write the file again") from None
    if not isinstance(value, dict):
        raise ResultError(f"{path}: holds a {type(value).__name__}: must be an object")
    return Fields(values=value, where=f"{path}:")


def read_columns(path: Path, names: Sequence[str], *, optional: Sequence[str] = ()) -> dict[str, list[float]]:
    """The named columns of a CSV file with one row of headings; an empty cell is NaN.

    optional: of `names`, those that may be missing and are NaN then.
    """
    rows = csv.DictReader(_read(path).splitlines())
    missing = [name for name in names if name not in (*(rows.fieldnames or ()), *optional)]
    if missing:
        raise ResultError(f"{path}: column {missing[0]} is missing: write the file again")
    columns: dict[str, list[float]] = {name: [] for name in names}
    for row in rows:
        for name in names:
            columns[name].append(_cell(path, rows.line_num, name, row.get(name)))
    return columns


def _cell(path: Path, line: int, name: str, cell: str | None) -> float:
    if not cell:
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise ResultError(f"{path}: line {line}, column {name} is {cell!r}: must be a number") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ResultMissing(f"{path.parent.name}/{path.name} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path} cannot be read: {error}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
