"""Questions and their SQL: sound, apart by split, and judged by running."""

from __future__ import annotations

import functools
import re
from contextlib import closing
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demo.lexicon import LABELS, MEASURES, RESERVED, THINGS
from demo.phrases import ways
from demo.sample import Sample, Split
from demo.sql import SYSTEM, TASK
from demo.sql_judge import answers, telling_database
from demo.sql_words import BOUNDS, COMPARISONS, TEMPLATES
from demo.words import split_of

SPLITS: tuple[Split, ...] = ("train", "held_out")
SQL_WORDS = """
    abort action add after all alter always analyze and as asc attach autoincrement avg before begin
    between by cascade case cast check collate column commit conflict constraint count create cross
    current database default deferrable deferred delete desc detach distinct do drop each else end
    escape except exclude exclusive exists explain fail filter first following for foreign from full
    generated glob group groups having id if ignore immediate in index indexed initially inner insert
    instead intersect into is isnull join key last left like limit match materialized max min natural no
    not nothing notnull null nulls of offset on or order others outer over partition plan pragma
    preceding primary query raise range recursive references regexp reindex release rename replace
    restrict returning right rollback row rowid rows savepoint select set sum table temp temporary then
    ties to total transaction trigger unbounded union unique update using vacuum values view virtual
    when where window with without
    """


@functools.cache
def stream(split: Split, seed: int) -> tuple[Random, list[Sample]]:
    """A generator and what was drawn with it so far."""
    return Random(f"{split} {seed}"), []


def drawn(split: Split, count: int, seed: int = 1) -> list[Sample]:
    """The first samples of a stream; no test draws again what another has drawn."""
    rng, samples = stream(split, seed)
    while len(samples) < count:
        samples.append(TASK.draw(rng, split))
    return samples[:count]


@pytest.fixture(scope="module")
def many() -> dict[Split, list[Sample]]:
    return {"train": drawn("train", 800), "held_out": drawn("held_out", 500)}


def query_of(sample: Sample) -> str:
    return str(sample.answer["content"])


def question_of(sample: Sample) -> str:
    return str(sample.messages[-1]["content"]).splitlines()[-1]


# Samples.


@pytest.mark.parametrize("split", SPLITS)
def test_the_reference_is_right_on_its_own_sample(split: Split):
    for sample in drawn(split, 40):
        assert TASK.is_right(sample, query_of(sample)), query_of(sample)


def test_the_same_generator_draws_the_same_samples():
    rng = Random("train 1")
    assert [TASK.draw(rng, "train") for _ in range(20)] == drawn("train", 20)
    assert drawn("train", 20) != drawn("train", 20, seed=2)


@pytest.mark.parametrize(
    ("split", "shares"), [("train", (0.15, 0.27, 0.32, 0.26)), ("held_out", (0.25, 0.35, 0.25, 0.15))]
)
def test_every_kind_and_number_of_joins_is_drawn_as_often_as_promised(many, split: Split, shares):
    samples = many[split]
    for joins, share in enumerate(shares):
        found = [sample for sample in samples if sample.facts["joins"] == joins]
        assert abs(len(found) / len(samples) - share) < 0.06
        assert {sample.facts["kind"] for sample in found} == set(TEMPLATES)
        assert all(query_of(sample).count(" join ") == joins for sample in found)


@pytest.mark.parametrize("split", SPLITS)
def test_whatever_the_query_copies_stands_in_the_prompt(many, split: Split):
    for sample in many[split]:
        schema, _, question = sample.messages[-1]["content"].rpartition("\n")
        literals = re.findall(r"'(\w+)%?'|\b(\d+)\b", query_of(sample))
        assert all((text or digits) in question for text, digits in literals)
        names = {column["name"] for table in sample.expected["tables"] for column in table["columns"]}
        names |= {table["name"] for table in sample.expected["tables"]}
        assert names <= set(re.findall(r"\w+", schema))


def test_no_name_stands_for_two_things_in_one_schema(many):
    for sample in many["train"] + many["held_out"]:
        tables = sample.expected["tables"]
        names = [table["name"] for table in tables]
        names += [
            column["name"] for table in tables for column in table["columns"] if column["kind"] != "key"
        ]
        assert len(names) == len(set(names))


def test_one_path_of_keys_leads_to_each_table_of_the_query(many):
    for sample in many["train"] + many["held_out"]:
        children: dict[str, int] = {}
        tables = {table["name"]: table["columns"] for table in sample.expected["tables"]}
        reached = [sample.expected["root"]]
        for table in reached:  # grows as keys are followed
            reached += [column["parent"] for column in tables[table] if column["kind"] == "key"]
        for table in reached:
            children[table] = children.get(table, 0) + 1
        assert set(children.values()) == {1}


def test_the_tables_of_a_query_follow_from_the_schema_one_after_the_other(many):
    """No step of the way back to the root has two tables to choose from."""
    for sample in many["train"] + many["held_out"]:
        keys = [
            (table["name"], column["parent"])
            for table in sample.expected["tables"]
            for column in table["columns"]
            if column["kind"] == "key"
        ]
        query, root = query_of(sample), sample.expected["root"]
        at = re.search(r" from (\w+)", query)[1]
        steps = re.findall(r" join (\w+) on (\w+)_id = (\w+)\.id", query)
        assert len(steps) == sample.facts["joins"]
        for joined, key, of in steps:
            assert key == of
            if at == root:  # the other table that the question names, of which the root has the key
                assert (root, joined) in keys
                assert key == joined
                continue
            assert key == at
            assert [child for child, parent in keys if parent == at] == [joined]
            at = joined
        assert at == root


def test_prompts_and_answers_stay_short(many):
    for sample in many["train"] + many["held_out"]:
        prompt = f"{SYSTEM} {sample.messages[-1]['content']}"
        assert len(prompt.split()) <= 80
        assert len(prompt) <= 500
        assert len(query_of(sample)) <= 300


# The splits.


@pytest.mark.parametrize("split", SPLITS)
def test_names_texts_and_numbers_belong_to_the_split(many, split: Split):
    for sample in many[split]:
        for table in sample.expected["tables"]:
            columns = [column for column in table["columns"] if column["kind"] != "key"]
            found = [table["name"], *(column["name"] for column in columns)]
            found += [str(literal).lower() for column in columns for literal in column["literals"]]
            assert {split_of(word) for word in found} == {split}
        for digits in re.findall(r"\b\d+\b", query_of(sample)):
            assert split_of(digits) == split


@functools.cache
def templates_of(kind: str, split: Split) -> tuple[str, ...]:
    return tuple(way for group in ways(TEMPLATES[kind], split) for way in group)


COLUMN = r"\w+(?: \w+)?"
SLOTS = {
    "t": r"\w+",
    "agg": r"\w+",
    "m": r"\w+",
    "most": r"\w+",
    "k": r"\d+",
    "out": COLUMN,
    "group": COLUMN,
    "the_out": rf"the (?:{COLUMN}|\w+ of the \w+)",
    "where": "(?: (?:whose|where) .*)?",
    "only": "(?: among those (?:whose|where) .*)?",
    "measure": "the .* rows.*",
    "bound": "(?:more|less|an?) .*",
}


@functools.cache
def pattern_of(template: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", template)
    return re.compile(
        "".join(SLOTS[piece] if index % 2 else re.escape(piece) for index, piece in enumerate(pieces))
    )


def fits(template: str, question: str) -> bool:
    return pattern_of(template).fullmatch(question) is not None


@pytest.mark.parametrize("split", SPLITS)
def test_questions_are_worded_as_the_split_allows(many, split: Split):
    for sample in many[split]:
        kind, question = str(sample.facts["kind"]), question_of(sample)
        assert any(fits(template, question) for template in templates_of(kind, split))
        if split == "train":
            assert not any(fits(template, question) for template in templates_of(kind, "held_out"))


def test_held_out_templates_use_no_word_that_training_lacks():
    def vocabulary(split: Split) -> set[str]:
        texts = " ".join(text for kind in TEMPLATES for text in templates_of(kind, split))
        return set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", texts).lower()))

    assert vocabulary("held_out") <= vocabulary("train")


def test_no_template_of_one_split_is_that_of_another_kind_in_the_other():
    def skeletons(split: Split) -> set[str]:
        texts = [text.replace("{where}", "") for kind in TEMPLATES for text in templates_of(kind, split)]
        return {re.sub(r"\{\w+\}", "{}", text) for text in texts}

    assert not skeletons("train") & skeletons("held_out")


def test_no_name_can_be_a_word_of_sql_or_of_a_question():
    phrases = [
        said for options in (*TEMPLATES.values(), *COMPARISONS.values(), *BOUNDS.values()) for said in options
    ]
    asked = set(re.findall(r"[a-z]+", re.sub(r"\{\w*\}", " ", " ".join(phrases)).lower()))
    needed = {
        *asked,
        *SQL_WORDS.split(),
        "whose",
        "where",
        "average",
        "highest",
        "minimum",
        "maximum",
        "summed",
    }
    assert needed <= set(RESERVED.split())
    assert not needed & set(f"{THINGS} {MEASURES} {LABELS}".split())


@pytest.mark.parametrize("nouns", [THINGS, MEASURES, LABELS])
def test_nouns_are_too_many_to_remember_in_either_split(nouns: str):
    assert len(nouns.split()) == len(set(nouns.split()))
    assert sum(split_of(noun) == "held_out" for noun in nouns.split()) >= 15


# The judge.


def other_column(sample: Sample, query: str) -> str:
    """The column listed, measured or grouped by gives way to another one of its table."""
    listed = re.match(r"select (?:distinct )?(?:\w+\()?(\w+)", query)
    for table in sample.expected["tables"] if listed else ():
        names = [column["name"] for column in table["columns"] if column["kind"] != "key"]
        if listed[1] in names and len(names) > 1:
            names.remove(listed[1])
            return query.replace(listed[1], names[0])
    return query


def other_aggregate(sample: Sample, query: str) -> str:
    others = {"sum(": "max(", "avg(": "sum(", "min(": "max(", "max(": "min(", "count(*)": "count(*) + 1"}
    listed, source, rest = query.partition(" from ")
    return re.sub(r"[a-z]+\((\*\))?", lambda found: others[found[0]], listed) + source + rest


def without_where(sample: Sample, query: str) -> str:
    return re.sub(r" where .*?(?= group by| order by|;)", "", query)


def without_join_condition(sample: Sample, query: str) -> str:
    return re.sub(r" on \w+ = \w+\.id", "", query, count=1)


def without_tail(sample: Sample, query: str) -> str:
    return re.sub(r" having [^;]+| limit \d+|distinct ", "", query)


def other_order(sample: Sample, query: str) -> str:
    return re.sub(r" (asc|desc) ", lambda found: " desc " if found[1] == "asc" else " asc ", query)


def other_value(sample: Sample, query: str) -> str:
    return re.sub(
        r" where .*", lambda found: re.sub(r"\d+", lambda old: f"{int(old[0]) + 1}", found[0]), query
    )


@pytest.mark.parametrize(
    ("spoiled", "least_share"),
    [
        (other_column, 0.97),
        (other_aggregate, 0.97),
        (without_where, 0.97),
        (without_join_condition, 0.97),
        (without_tail, 0.97),
        (other_order, 0.97),
        # One more or less may change no row: a test of the literal, not of the query's shape.
        (other_value, 0.85),
    ],
)
def test_a_spoiled_query_is_nearly_always_wrong(many, spoiled, least_share):
    pairs = [(sample, spoiled(sample, query_of(sample))) for sample in many["train"]]
    pairs = [(sample, query) for sample, query in pairs if query != query_of(sample)][:40]
    assert len(pairs) == 40
    wrong = sum(not TASK.is_right(sample, query) for sample, query in pairs)
    assert wrong / len(pairs) >= least_share


def test_a_query_written_otherwise_is_right_all_the_same():
    for sample in drawn("train", 12, seed=4):
        query = query_of(sample)
        assert TASK.is_right(sample, query.rstrip(";"))
        assert TASK.is_right(sample, f"\n  {query.replace(' join ', ' inner join ')}\n")
        if sample.facts["kind"] != "top":
            assert TASK.is_right(sample, query.replace("select ", "SELECT ", 1))


def test_order_matters_only_where_the_question_orders():
    by_kind = {sample.facts["kind"]: sample for sample in drawn("train", 60)}
    shuffled = "select * from ({}) order by 1 desc"
    group, top = by_kind["group"], by_kind["top"]
    assert TASK.is_right(group, shuffled.format(query_of(group).rstrip(";")))
    assert not TASK.is_right(top, shuffled.format(query_of(top).rstrip(";")))


ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
HOSTILE = [
    "",
    " ;",
    "select",
    "not a query at all",
    "select 1",
    "select nothing from nowhere",
    "select load_extension('x')",
    "select zeroblob(1000000000)",
    "select replace(printf('%900c', 'x'), ' ', printf('%900c', 'y'))",
    "select * from {root}",
    "select count(*) from {root} a, {root} b, {root} c, {root} d, {root} e, {root} f",
    "drop table {root}",
    "delete from {root}",
    "update {root} set id = 1",
    "create table more (x)",
    "pragma writable_schema = 1",
    "begin",
    "vacuum",
    "explain {query}",
    "{query} {query}",
    "{query} drop table {root};",
    "drop table {root}; {query}",
    ENDLESS,
    f"select * from ({ENDLESS})",
    "\0",
    "{query}\0",
    "\ud800",
    "select '\ud800'",
    "select cast(x'ff' as text)",
    "select " + "(" * 900,
    "select '" + "x" * 100_000 + "'",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_is_wrong(text: str):
    for sample in drawn("train", 1, seed=5):
        spoken = text.replace("{query}", query_of(sample)).replace("{root}", sample.expected["root"])
        assert not TASK.is_right(sample, spoken)


def test_no_query_writes_to_the_database_or_beside_it(tmp_path):
    sample = drawn("train", 1)[0]
    root = sample.expected["root"]
    connection, rows = telling_database(sample.expected, 0)
    beside = tmp_path / "beside"
    with closing(connection):
        whole = answers(connection, f"select * from {root}")
        for text in (
            *HOSTILE,
            f"attach '{beside}' as x",
            f"vacuum into '{beside}'",
            f"insert into {root} (id) values (1)",
        ):
            answers(connection, text.replace("{query}", query_of(sample)).replace("{root}", root), at_most=10)
        assert answers(connection, f"select * from {root}") == whole
        assert answers(connection, query_of(sample)) == rows
    assert not beside.exists()


def test_a_query_that_would_not_end_is_stopped_by_its_budget():
    sample = drawn("train", 1)[0]
    root = sample.expected["root"]
    connection, _ = telling_database(sample.expected, 0)
    with closing(connection):
        assert answers(connection, f"select count(*) from {root} a, {root} b") != []
        assert (
            answers(connection, f"select count(*) from {', '.join(f'{root} t{n}' for n in range(12))}") == []
        )


FRAGMENTS = (
    "select * from where group by having order limit union ( ) , ; ' \" -- /* */ 1 'x' count(*) id {root} ?"
)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text() | st.lists(st.sampled_from(FRAGMENTS.split()), max_size=12).map(" ".join))
def test_no_text_makes_the_judge_raise(text: str):
    sample = drawn("train", 1)[0]
    assert TASK.is_right(sample, text.replace("{root}", sample.expected["root"])) in (True, False)
