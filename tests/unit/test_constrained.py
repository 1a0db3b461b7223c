"""A grammar changes which tokens may come and nothing else: mates, drafts and faults change no bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from jsonschema import Draft202012Validator

from actors.engine import Engine
from actors.messages import FINISH_GRAMMAR, FINISH_LENGTH, FINISH_STOP, TokenEvent
from actors.scheduler import SchedulerLimits
from bench.random_schema import random_schema
from ingress.constraints import ToolTerms, with_calls
from ingress.dsml import schemas_of
from ingress.json_grammar import JsonRules
from ingress.output import Output, OutputOptions
from ingress.tokens import Tokenizer
from model.decoder import Decoder
from model.grammar import Grammars
from model.sampling import Sampling
from router.exchange import Exchange
from tests.shoals import Generated, engine_of, generate, local_parts
from tests.unit.foreseeable import write_foreseeable
from tests.unit.test_matcher import DEAR, END_THINK, EOS, VOCAB, json_grammar

NUM_SCHEMAS = 16
MARK = 7
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
}
ARGUMENTS = {
    "type": "object",
    "properties": {
        "t": {"type": "string", "enum": ["", "a<", "a</b", "\u00fc\n"]},
        "n": {"type": "integer", "minimum": 1, "maximum": 99},
        "r": {"$ref": "#/$defs/r"},
        "s": {"type": ["string", "null"], "maxLength": 3},
    },
    "required": ["n"],
    "additionalProperties": False,
    "$defs": {"r": {"type": "array", "items": {"type": "string", "maxLength": 2}, "maxItems": 1}},
}
FUNCTIONS = [{"name": "w", "parameters": ARGUMENTS}, {"name": "p"}]
GREEDY = Sampling(max_tokens=200, temperature=0.0, logprobs=1)
FREE = replace(GREEDY, max_tokens=6)
TOLD = (
    replace(GREEDY, grammar=json_grammar(PERSON)),
    replace(GREEDY, temperature=1.0, seed=5, grammar=json_grammar(PERSON)),
    replace(GREEDY, temperature=0.8, seed=6, top_p=0.9, min_tokens=9, grammar="start: /[a-f]{4,12}/\n"),
    replace(GREEDY, presence_penalty=1.0, repetition_penalty=1.2, grammar="start: /[a-f]{4,12}/\n"),
    replace(
        GREEDY,
        temperature=1.0,
        seed=9,
        max_tokens=12,
        grammar='start: "yes" | "no"\n',
        grammar_after=END_THINK,
    ),
)
PROMPTS = [[20 + i, 30, 40 + i] * (1 + 6 * i) for i in range(len(TOLD))]


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer.directory, vocab_size=VOCAB, end_ids=[EOS])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("foreseeable")
    write_foreseeable(directory)
    return directory


@pytest.fixture(scope="module")
def parts(checkpoint: Path) -> tuple[Decoder, Exchange]:
    return local_parts(checkpoint)


@pytest.fixture(scope="module")
def alone(parts: tuple[Decoder, Exchange], grammars: Grammars) -> list[Generated]:
    """Each by itself, without drafts and without cached prefixes."""
    engine = engine_of(parts, prefix_cache=False)
    pairs = zip(PROMPTS, TOLD, strict=True)
    return [generate(engine, [prompt], told, grammars=grammars)[0] for prompt, told in pairs]


def together(engine: Engine, grammars: Grammars, emitted: Sequence[Sequence[int]] = ()) -> list[Generated]:
    return generate(engine, PROMPTS, TOLD, grammars=grammars, emitted=emitted)


def test_what_is_asked_for_comes_and_then_the_end(alone: list[Generated], tokenizer: Tokenizer) -> None:
    assert [one.finish for one in alone[:4]] == [FINISH_STOP] * 4
    for one in alone[:2]:
        Draft202012Validator(PERSON).validate(json.loads(tokenizer.decode(one.token_ids)))
    for one in alone[2:4]:
        assert set(tokenizer.decode(one.token_ids)) <= set("abcdef")
        assert 5 <= len(one.token_ids) <= 13
    assert len(alone[2].token_ids) > 9  # min_tokens
    assert EOS not in alone[4].token_ids or END_THINK in alone[4].token_ids


def test_mates_and_cached_prefixes_change_nothing(
    parts: tuple[Decoder, Exchange], alone: list[Generated], grammars: Grammars
) -> None:
    engine = engine_of(parts, limits=SchedulerLimits(chunk_tokens=16))
    assert together(engine, grammars) == alone
    assert together(engine, grammars) == alone


@pytest.mark.parametrize("depth", [1, 3])
def test_drafts_change_nothing(
    checkpoint: Path, alone: list[Generated], grammars: Grammars, depth: int
) -> None:
    engine = engine_of(local_parts(checkpoint, draft_tokens=1), draft_tokens=depth)
    assert together(engine, grammars) == alone
    assert sum(engine.counters.accepted) > 5


def test_running_out_of_pages_changes_nothing(
    parts: tuple[Decoder, Exchange], alone: list[Generated], grammars: Grammars
) -> None:
    engine = engine_of(parts, num_pages=6, limits=SchedulerLimits(max_sequences=4))
    assert together(engine, grammars) == alone


def test_a_sequence_resumed_elsewhere_goes_on_with_the_same_tokens(
    parts: tuple[Decoder, Exchange], alone: list[Generated], grammars: Grammars
) -> None:
    counts = (1, 4, 2, 3, 4)
    before = [one.token_ids[:count] for one, count in zip(alone, counts, strict=True)]
    resumed = together(engine_of(parts), grammars, before)
    for one, whole, count in zip(resumed, alone, counts, strict=True):
        assert (one.token_ids, one.logprobs) == (whole.token_ids[count:], whole.logprobs[count:])


def test_whoever_has_no_grammar_is_not_touched_by_those_who_have(
    parts: tuple[Decoder, Exchange], grammars: Grammars
) -> None:
    engine = engine_of(parts, prefix_cache=False)
    free = [generate(engine, [prompt], FREE)[0] for prompt in PROMPTS]
    mixed = generate(engine, PROMPTS * 2, [FREE] * len(PROMPTS) + list(TOLD), grammars=grammars)
    assert mixed[: len(PROMPTS)] == free


def test_random_schemas_are_kept_to(
    parts: tuple[Decoder, Exchange], grammars: Grammars, tokenizer: Tokenizer
) -> None:
    """A thousand of them: python -m bench.schemas."""
    schemas = [random_schema(Random()) for _ in range(NUM_SCHEMAS)]
    told = [
        Sampling(max_tokens=900, temperature=float(i % 2), seed=i, grammar=json_grammar(schema))
        for i, schema in enumerate(schemas)
    ]
    made = generate(engine_of(parts), [[30, 40, 50]] * NUM_SCHEMAS, told, grammars=grammars)
    for schema, one in zip(schemas, made, strict=True):
        assert one.finish == FINISH_STOP, schema
        Draft202012Validator(schema).validate(json.loads(tokenizer.decode(one.token_ids)))


@pytest.mark.parametrize("is_one", [True, False])
def test_calls_that_must_come_are_read_back_and_fit_their_tools(
    parts: tuple[Decoder, Exchange], grammars: Grammars, tokenizer: Tokenizer, is_one: bool
) -> None:
    wanted = ToolTerms(functions=FUNCTIONS, required=["w", "p"], is_one=is_one, mark_id=MARK)
    constraint = with_calls(None, wanted)
    assert constraint is not None
    told = [Sampling(max_tokens=400, seed=seed, grammar=constraint.grammar) for seed in range(8)]
    made = generate(engine_of(parts), [[30, 40, 50]] * len(told), told, grammars=grammars)
    options = OutputOptions(schemas=schemas_of(FUNCTIONS))
    for one in made:
        event = TokenEvent(request_id="", first=0, token_ids=tuple(one.token_ids), finish=one.finish)
        delta = Output(0, tokenizer, options).push(event)
        assert delta.finish == ("tool_calls" if one.finish == FINISH_STOP else FINISH_LENGTH)
        assert delta.calls and (len(delta.calls) == 1 or not is_one)
        assert delta.content == "" or delta.finish == FINISH_LENGTH
        for call in delta.calls:
            Draft202012Validator(ARGUMENTS if call.name == "w" else {}).validate(json.loads(call.arguments))


def test_a_grammar_that_becomes_too_dear_ends_its_own_sequence_only(
    parts: tuple[Decoder, Exchange], grammars: Grammars
) -> None:
    engine = engine_of(parts)
    dear = Sampling(max_tokens=900, seed=3, min_tokens=900, grammar=DEAR)
    expected = generate(engine, PROMPTS[:1], FREE)
    ended, mate = generate(engine, [PROMPTS[1], PROMPTS[0]], [dear, FREE], grammars=grammars)
    assert ended.finish == FINISH_GRAMMAR
    assert mate == expected[0]
    assert mate.finish == FINISH_LENGTH


def test_what_a_lenient_schema_leaves_out_is_told() -> None:
    rules = JsonRules(is_strict=False)
    schema = {"type": "array", "uniqueItems": True, "items": {"type": "string", "format": "colour"}}
    assert "uniqueItems" not in rules.rule(schema, "s")
    assert rules.ignored == ["s.uniqueItems", "s.items.format"]
