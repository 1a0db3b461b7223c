"""Made-up databases: tables, columns and foreign keys.

A draft grows by what a query asks of it, is padded with things that no query needs, and is then shuffled.
Knows nothing of questions and of SQL (demo/sql.py), and of rows (demo/sql_judge.py).

Table 0 of a draft is the root: what one row of a query is about. Keys lead from it along one path only to
every other table that a query uses, and to each of those from one table only, so that the way back to the
root never branches; names are used once in a database, so no column is ambiguous.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from demo.lexicon import LABELS, MEASURES, THINGS
from demo.sample import Split
from demo.words import english, word

Kind = Literal["number", "text", "key"]
Literals = tuple[int | str, ...]

NOUN_SHARE = 0.35  # of the names that are English nouns; the others are made up
FORK_SHARE = 0.35  # of the schemas with joins enough for two paths


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """literals: what the query compares this column with. parent: the table a key refers to."""

    name: str
    kind: Kind
    literals: Literals = ()
    parent: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table with its columns in the order shown; the column id comes before them."""

    name: str
    columns: tuple[Column, ...]

    def as_line(self) -> str:
        """Such as "- drenio(id, plomi, stiba text, vesto_id)": what bears no type is a number.

        A space before each name but the key's lets a tokenizer cut a name in one way everywhere.
        """
        shown = [f"{column.name} text" if column.kind == "text" else column.name for column in self.columns]
        return f"- {self.name}({', '.join(['id', *shown])})"

    def as_json(self) -> Mapping[str, Any]:
        """What demo/sql_judge.py builds the table from."""
        columns = [
            {
                "name": column.name,
                "kind": column.kind,
                "literals": list(column.literals),
                "parent": column.parent,
            }
            for column in self.columns
        ]
        return {"name": self.name, "columns": columns}


@dataclass(kw_only=True, slots=True)
class Draft:
    """A database while it is made; tables are known by their number, 0 is the root."""

    rng: Random
    split: Split
    names: list[str] = field(default_factory=list)
    columns: list[list[Column]] = field(default_factory=list)
    child_of: dict[int, int] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def add_paths(self, joins: int) -> list[int]:
        """The root and the tables to join it with: a chain, or a fork of two. Returns the far ends."""
        self.add_table()
        is_fork = joins >= 2 and self.rng.random() < FORK_SHARE
        end = 0
        for _ in range(joins - is_fork):
            end = self.add_parent(end)
        return [end, self.add_parent(0)] if is_fork else [end]

    def add_table(self) -> int:
        """A new table, so far without columns."""
        self.names.append(self._new_name(THINGS))
        self.columns.append([])
        return len(self.names) - 1

    def add_parent(self, child: int) -> int:
        """A new table that `child` refers to."""
        parent = self.add_table()
        self.child_of[parent] = child
        self._add_key(child, parent)
        return parent

    def add_column(self, table: int, kind: Kind, literals: Literals = ()) -> str:
        """A new column's name."""
        name = self._new_name(MEASURES if kind == "number" else LABELS)
        self.columns[table].append(Column(name=name, kind=kind, literals=literals))
        return name

    def add_distractors(self, *, tables: int, columns: int) -> None:
        """Tables and columns that no query needs; no table is left with keys alone."""
        after = len(self.names) - 1
        for _ in range(tables):
            self._add_distractor_table(after)
        for index, made in enumerate(self.columns):
            if all(column.kind == "key" for column in made):
                self.add_column(index, self._value_kind())
        for _ in range(columns):
            self.add_column(self.rng.randrange(len(self.names)), self._value_kind())

    def path_to(self, table: int) -> list[int]:
        """The tables from the root to `table`, without the root: each is referred to by the one before."""
        path: list[int] = []
        while table != 0:
            path.insert(0, table)
            table = self.child_of[table]
        return path

    def finished(self) -> list[Table]:
        """The tables and their columns in random order."""
        tables = [
            Table(name=name, columns=tuple(self.rng.sample(made, len(made))))
            for name, made in zip(self.names, self.columns, strict=True)
        ]
        self.rng.shuffle(tables)
        return tables

    def _add_distractor_table(self, after: int) -> None:
        """A dead end that any table refers to, or one that refers to the root or to another distractor.

        after: the number of the last table that the query uses.
        """
        if self.rng.random() < 0.5:
            self.add_parent(self.rng.randrange(len(self.names)))
        else:
            neighbour = self.rng.choice((0, *range(after + 1, len(self.names))))
            self._add_key(self.add_table(), neighbour)

    def _add_key(self, child: int, parent: int) -> None:
        name = self.names[parent]
        self.columns[child].append(Column(name=f"{name}_id", kind="key", parent=name))

    def _value_kind(self) -> Kind:
        return "number" if self.rng.random() < 0.5 else "text"

    def _new_name(self, nouns: str) -> str:
        while True:
            is_noun = self.rng.random() < NOUN_SHARE
            made = english(self.rng, nouns, self.split) if is_noun else word(self.rng, self.split)
            if made not in self.used:
                self.used.add(made)
                return made
