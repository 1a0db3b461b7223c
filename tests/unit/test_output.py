"""Text, reasoning, tool calls and stop strings: the cut of the events must not show."""

# ruff: noqa: RUF001 - the special tokens are spelled with bars that are not ASCII

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import FINISH_LENGTH, FINISH_STOP, TokenEvent
from ingress.answer import joined
from ingress.output import Delta, Output, OutputOptions
from ingress.stops import StopFinder
from ingress.tokenizer_file import write_byte_tokenizer
from ingress.tokens import Tokenizer
from tests.unit.app_server import spelled


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(directory)
    return Tokenizer.from_file(directory / "tokenizer.json")


def cut(items, places: list[int]) -> list:
    """`items` in consecutive pieces, cut at `places`; some may be empty."""
    edges = [0, *sorted(place % (len(items) + 1) for place in places), len(items)]
    return [items[start:end] for start, end in itertools.pairwise(edges)]


def deltas(
    tokenizer: Tokenizer, pieces: list[tuple[int, ...]], options: OutputOptions, finish: str
) -> list[Delta]:
    """What an Output makes of these events, up to its own end."""
    output, made, first = Output(0, tokenizer, options), [], 0
    for place, piece in enumerate(pieces):
        is_last = place == len(pieces) - 1
        made.append(
            output.push(
                TokenEvent(request_id="r", first=first, token_ids=piece, finish=finish if is_last else None)
            )
        )
        first += len(piece)
        if made[-1].finish is not None:
            break
    return made


stops_lists = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4)


@given(st.text("abc", max_size=24), stops_lists, st.lists(st.integers(0, 99), max_size=6))
def test_a_stop_is_found_where_a_search_of_the_whole_text_finds_it(text, stops, places):
    ends = [end for end in range(1, len(text) + 1) if text[:end].endswith(tuple(stops))]
    expected = text
    if ends:
        longest = max(len(stop) for stop in stops if text[: ends[0]].endswith(stop))
        expected = text[: ends[0] - longest]
    finder, shown, found = StopFinder(stops), "", False
    for piece in cut(text, places):
        safe, found = finder.push(piece)
        shown += safe
        assert expected.startswith(shown)  # nothing was shown that had to be taken back
        if found:
            break
    assert found == bool(ends)
    assert shown + ("" if found else finder.flush()) == expected


ids_lists = st.lists(st.sampled_from([*range(16, 272), 16 + 97, 16 + 98, 1, 6, 5]), min_size=1, max_size=40)


@given(
    ids_lists,
    st.lists(st.text("ab\u00e9\ufffd", min_size=1, max_size=3), max_size=3),
    st.lists(st.integers(0, 99), max_size=8),
    st.booleans(),
    st.sampled_from([FINISH_STOP, FINISH_LENGTH]),
    st.integers(0, 10),
)
def test_the_cut_of_the_events_changes_nothing(
    tokenizer, ids, stops, places, starts_in_reasoning, finish, min_tokens
):
    options = OutputOptions(
        stops=tuple(stops), starts_in_reasoning=starts_in_reasoning, min_tokens=min_tokens
    )
    whole = joined(deltas(tokenizer, [tuple(ids)], options, finish))
    pieces = [tuple(piece) for piece in cut(ids, places)]
    assert joined(deltas(tokenizer, pieces, options, finish)) == whole


INVOKE = '<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="a" string="true">ab\u00e9</｜DSML｜parameter>\n'
FRAGMENTS = (
    "ab",
    "\n\n",
    "<",
    "</think>",
    "｜DSML｜",
    "\u00e9",
    INVOKE,
    INVOKE + "</｜DSML｜invoke>",
    "</｜DSML｜invoke>",
)


@given(
    st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=8).map("".join),
    st.lists(st.sampled_from(["a", "b\u00e9", "\n", "\n\n", "</"]), max_size=2),
    st.lists(st.integers(0, 999), max_size=8),
    st.booleans(),
    st.booleans(),
    st.sampled_from([FINISH_STOP, FINISH_LENGTH]),
)
def test_the_cut_of_the_events_changes_no_call(
    tokenizer, text, stops, places, starts_in_reasoning, is_one_call, finish
):
    options = OutputOptions(
        stops=tuple(stops),
        starts_in_reasoning=starts_in_reasoning,
        schemas={},
        is_one_call=is_one_call,
    )
    ids = spelled(tokenizer, text)
    whole = joined(deltas(tokenizer, [tuple(ids)], options, finish))
    assert joined(deltas(tokenizer, [tuple(piece) for piece in cut(ids, places)], options, finish)) == whole
    assert joined(deltas(tokenizer, [(token_id,) for token_id in ids], options, finish)) == whole
    assert whole.finish != "stop" or not whole.calls
    assert len(whole.calls) <= 1 or not is_one_call
    if not whole.calls and not stops:
        assert whole.reasoning + whole.content == tokenizer.decode(ids)


def test_a_tag_cuts_a_character_in_two(tokenizer):
    first, second = encoded(tokenizer, "\u00e9")
    ids = (first, tokenizer.special_id("｜DSML｜"), second)
    made = joined(deltas(tokenizer, [ids], OutputOptions(schemas={}), FINISH_STOP))
    assert made.content == "\ufffd\ufffd"


@given(ids_lists, st.lists(st.integers(0, 99), max_size=8))
def test_without_stops_the_text_is_the_decoded_text(tokenizer, ids, places):
    pieces = [tuple(piece) for piece in cut(ids, places)]
    made = joined(deltas(tokenizer, pieces, OutputOptions(), FINISH_LENGTH))
    assert made.content == tokenizer.decode(ids)
    assert made.token_ids == tuple(ids)


def encoded(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode_text(text))


def test_tokens_after_a_stop_string_do_not_count(tokenizer):
    ids = encoded(tokenizer, "one STOP two")
    made = deltas(tokenizer, [ids], OutputOptions(stops=("STOP",)), FINISH_LENGTH)
    assert [delta.content for delta in made] == ["one "]
    assert made[-1].finish == FINISH_STOP
    assert len(made[-1].token_ids) == len("one STOP")


@pytest.mark.parametrize(("min_tokens", "shown"), [(2, "a"), (3, "aXb"), (4, "aXb"), (5, "aXbXc")])
def test_a_stop_string_is_not_looked_for_before_min_tokens(tokenizer, min_tokens, shown):
    options = OutputOptions(stops=("X",), min_tokens=min_tokens)
    made = joined(deltas(tokenizer, [encoded(tokenizer, "aXbXc")], options, FINISH_LENGTH))
    assert made.content == shown


def test_a_stop_token_is_counted_but_not_shown(tokenizer):
    ids = encoded(tokenizer, "ab!")
    options = OutputOptions(silent_stop_ids=frozenset(encoded(tokenizer, "!")))
    made = joined(deltas(tokenizer, [ids], options, FINISH_STOP))
    assert (made.content, len(made.token_ids)) == ("ab", 3)
    assert joined(deltas(tokenizer, [ids], options, FINISH_LENGTH)).content == "ab!"


def test_reasoning_ends_at_its_token_and_not_at_its_spelling(tokenizer):
    end_think = tokenizer.special_id("</think>")
    ids = (*encoded(tokenizer, "hm </think> hm"), end_think, *encoded(tokenizer, "yes"))
    made = joined(deltas(tokenizer, [ids], OutputOptions(starts_in_reasoning=True), FINISH_STOP))
    assert (made.reasoning, made.content) == ("hm </think> hm", "yes")
    assert made.num_reasoning == len("hm </think> hm") + 1
