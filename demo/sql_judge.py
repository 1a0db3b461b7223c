"""Is a query right? It and the reference are run.

Rows are made such that the numbers and texts of the reference query occur in them, near misses too, and that
what is ordered by has no ties. Knows nothing of questions (demo/sql.py). A stranger's query can only read,
within a budget of steps, and whatever SQLite refuses is wrong.

What it is handed, `expected`: query, ordered, seed, root (the name of the table with the most rows), rows
(how many, at first) and tables as `Table.as_json` writes them.
"""

from __future__ import annotations

import itertools
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from random import Random
from string import ascii_lowercase
from typing import Any

DATABASES = 4  # on which two queries must agree
TRIES = 256  # rows for one database, until the reference query has something to say
PARENT_ROWS = 10
MAX_QUERY_CHARS = 1000
MAX_TEXT_BYTES = 1000
STEPS_PER_TICK = 1000
MAX_TICKS = 300

_ALLOWED = frozenset((sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION))
_WITH = re.compile(r"\bwith\b", re.IGNORECASE)

Rows = list[tuple[Any, ...]]


def same_answers(expected: Mapping[str, Any], query: str) -> bool:
    """Whether `query` gives what the reference gives, on every one of the databases. Raises on no text."""
    if len(query) > MAX_QUERY_CHARS or _WITH.search(query):
        # Common table expressions can double in size at each name before a single step is counted.
        return False
    return all(_agree_on(expected, query, database) for database in range(DATABASES))


def telling_database(expected: Mapping[str, Any], database: int) -> tuple[sqlite3.Connection, Rows]:
    """A read-only database where the reference query has rows to give, and these."""
    rng = Random(f"{expected['seed']} {database}")
    root_rows = int(expected["rows"])
    for _ in range(TRIES):
        connection = _database(expected, root_rows, rng)
        rows = answers(connection, expected["query"])
        if any(row[0] for row in rows):  # a count of 0 says nothing either
            return connection, rows
        connection.close()
        # More may meet the conditions, fewer may make the small groups that are asked for.
        root_rows = round(int(expected["rows"]) * rng.uniform(0.2, 2))
    raise AssertionError(f"{TRIES} databases say nothing of {expected['query']!r}: draw easier conditions")


def answers(connection: sqlite3.Connection, query: str, *, at_most: int = -1) -> Rows:
    """The rows of `query`, the first `at_most`; none for what is not one sound query within the budget.

    No row is no answer: a telling database has some for the reference.
    """
    ticks = itertools.count()
    connection.set_progress_handler(lambda: next(ticks) > MAX_TICKS, STEPS_PER_TICK)
    try:
        # ValueError: a zero byte, or half of a surrogate pair. Warning: two statements, before Python 3.12.
        cursor = connection.execute(query)
        rows: Rows = cursor.fetchall() if at_most < 0 else cursor.fetchmany(at_most)
    except (sqlite3.Error, sqlite3.Warning, ValueError):
        return []
    return [tuple(round(cell, 6) if isinstance(cell, float) else cell for cell in row) for row in rows]


def _agree_on(expected: Mapping[str, Any], query: str, database: int) -> bool:
    connection, reference = telling_database(expected, database)
    with closing(connection):
        given = answers(connection, query, at_most=len(reference) + 1)
    return given == reference if expected["ordered"] else Counter(given) == Counter(reference)


def _database(expected: Mapping[str, Any], root_rows: int, rng: Random) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    tables: Sequence[Mapping[str, Any]] = expected["tables"]
    ids: dict[str, range] = {}
    for number, table in enumerate(tables, 1):
        count = root_rows if table["name"] == expected["root"] else PARENT_ROWS
        # Apart from those of every other table, so that a join along a wrong key finds nothing.
        ids[table["name"]] = range(number * 1000, number * 1000 + count)
    connection.execute("begin")
    for table in tables:
        _fill(connection, table, ids, rng)
    connection.execute("commit")
    _lock(connection)
    return connection


def _fill(
    connection: sqlite3.Connection, table: Mapping[str, Any], ids: Mapping[str, range], rng: Random
) -> None:
    columns = table["columns"]
    own_ids = ids[table["name"]]
    names = [f"{column['name']} {'text' if column['kind'] == 'text' else 'integer'}" for column in columns]
    connection.execute(f"create table {table['name']} ({', '.join(['id integer primary key', *names])})")
    cells = [list(_cells(column, len(own_ids), ids, rng)) for column in columns]
    places = ", ".join("?" * (1 + len(columns)))
    connection.executemany(
        f"insert into {table['name']} values ({places})", zip(own_ids, *cells, strict=True)
    )


def _cells(
    column: Mapping[str, Any], count: int, ids: Mapping[str, range], rng: Random
) -> Iterator[int | str]:
    if column["kind"] == "key":
        parents = ids[column["parent"]]
        return iter(rng.choices(parents, range(1, len(parents) + 1), k=count))
    if column["kind"] == "text":
        return iter(_texts(column["literals"], count, rng))
    if column["literals"]:
        return (_near(column["literals"], rng) for _ in range(count))
    # All different: an order has no ties, and the least and the most are one row each.
    return iter(rng.sample(range(1, 1000 + count), count))


def _texts(literals: Sequence[str], count: int, rng: Random) -> list[str]:
    """Few, so that they repeat. A literal stands there whole and as the beginning of others."""
    others = ["".join(rng.choices(ascii_lowercase, k=6)).capitalize() for _ in range(10)]
    if not literals:
        # From seldom to often: groups of every size.
        return rng.choices(others, range(1, 11), k=count)
    near = [text for literal in literals for text in (literal, literal, literal + "ra", literal + "so")]
    return rng.choices([*others[:5], *near], k=count)


def _near(literals: Sequence[int], rng: Random) -> int:
    """The number itself or one beside it, mostly the next, as a wrong comparison often differs only there."""
    return rng.choice(literals) + rng.choice((0, 0, 0, -1, -1, 1, 1, -4, 4, -20, 20))


def _lock(connection: sqlite3.Connection) -> None:
    """From here on nothing can be written, grown or attached."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_TEXT_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 100)
    connection.set_authorizer(
        lambda action, *_: sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY
    )
