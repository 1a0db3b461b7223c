"""The demo's tasks: references are right, damage is wrong, what is held out was never shown."""

# ruff: noqa: RUF001 - the special tokens are spelled with bars that are not ASCII

import functools
import json
import re
from collections import Counter, deque
from itertools import combinations, pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo import (
    about,
    about_topics,
    arithmetic,
    arithmetic_words,
    lexicon,
    needle,
    phrases,
    sql_words,
    tool_calls,
    tool_words,
    words,
)
from demo.tasks import TASKS, task_named
from demo.words import split_of
from ingress.encoding import encode_history, encode_messages, render
from ingress.specials import EOS

MODULES = (arithmetic, tool_calls, needle, about)
SPLITS = ("train", "held_out")
DRAWS = 100
USER = {"role": "user", "content": "go"}

each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.TASK.name)
each_split = pytest.mark.parametrize("split", SPLITS)


@functools.cache
def stream(module, split, seed):
    """A generator and what was drawn with it so far."""
    return Random(seed), []


def draws(module, split, count=DRAWS, seed=7):
    """The first samples of a stream; no test draws again what another has drawn."""
    rng, drawn = stream(module, split, seed)
    while len(drawn) < count:
        drawn.append(module.TASK.draw(rng, split))
    return drawn[:count]


def written(sample, answer):
    """What the model writes after its reasoning: the answer's text or calls, as the encoder spells them."""
    tools = sample.tools or None
    prompt = encode_messages(sample.messages, tools=tools)
    history = encode_history([*sample.messages, answer], tools=tools)
    assert history[: len(prompt)] == prompt
    return render(history[len(prompt) :]).removesuffix(EOS.text)


def words_in(text):
    return re.findall(r"[A-Za-z]+", text)


@functools.cache
def as_pattern(template):
    """A template as a pattern that its questions match."""
    kinds = {"e": "[0-9].*[0-9]", "a": "[0-9]+", "b": "[0-9]+", "c": "[0-9]+", "things": "[a-z]+"}
    parts = re.split(r"\{(\w+)\}", template)
    seen, pattern = set(), ""
    for index, part in enumerate(parts):
        if index % 2 == 0:
            pattern += re.escape(part)
        else:
            pattern += f"(?P={part})" if part in seen else f"(?P<{part}>{kinds.get(part, '[A-Z][a-z]+')})"
            seen.add(part)
    return re.compile(pattern)


def test_every_task_is_listed_once_and_found_by_its_name():
    assert [task.name for task in TASKS] == ["sql", "arithmetic", "tool", "needle", "about"]
    assert all(task_named(task.name) is task for task in TASKS)
    with pytest.raises(ValueError, match="task is 'poems': must be one of sql, arithmetic"):
        task_named("poems")


@each_split
@each_module
def test_references_are_right_and_those_of_other_questions_wrong(module, split):
    for sample, other in pairwise(draws(module, split)):
        assert module.TASK.is_right(sample, written(sample, sample.answer))
        assert not module.TASK.is_right(sample, "")
        if other.expected != sample.expected and other.answer != sample.answer:
            assert not module.TASK.is_right(sample, written(other, other.answer))


@each_module
def test_the_same_state_gives_the_same_samples(module):
    rng = Random(3)
    assert [module.TASK.draw(rng, "train") for _ in range(20)] == draws(module, "train", 20, seed=3)
    assert draws(module, "train", 20, seed=3) != draws(module, "train", 20, seed=4)


@each_split
@each_module
def test_the_prompt_is_an_exact_prefix_of_the_history(module, split):
    for sample in draws(module, split, 40):
        options = {"thinking": sample.thinking, "tools": sample.tools or None}
        prompt = encode_messages(sample.messages, **options)
        history = encode_history([*sample.messages, sample.answer], **options)
        assert history[: len(prompt)] == prompt
        assert len(history) > len(prompt)
        assert history[-1] == EOS


@each_module
def test_no_held_out_sample_occurs_in_training(module):
    train, held_out = (
        {json.dumps([sample.messages, sample.tools]).lower() for sample in draws(module, split, 200)}
        for split in SPLITS
    )
    assert train
    assert not train & held_out


# Arithmetic


def plain_value(expression):
    total = 0
    for sign, product in re.findall(r"([+-]?)([0-9*]+)", expression):
        value = 1
        for factor in product.split("*"):
            value *= int(factor)
        total += -value if sign == "-" else value
    return total


def walk(lines, expression):
    """Follow the steps by their own digits; the value they arrive at."""
    while re.search(r"[0-9][-+*]", expression):
        if len(re.findall(r"[-+*]", expression)) > 1:
            assert lines.popleft() == expression
        found = re.search(r"([0-9]+)(\*)([0-9]+)", expression) or re.match(
            r"([0-9]+)([-+])([0-9]+)", expression
        )
        result = walk_block(lines, int(found[1]), found[2], int(found[3]))
        expression = expression[: found.start()] + str(result) + expression[found.end() :]
    return int(expression)


def walk_block(lines, a, operator, b):
    assert lines.popleft() == f"{a}{operator}{b}"
    if operator == "*":
        return walk_product(lines, a, b)
    carry, done = 0, ""
    for place in range(max(len(str(a)), len(str(b)))):
        x, y, carry_in, tens, units, found = column(lines, operator)
        assert (x, y, carry_in) == (a // 10**place % 10, b // 10**place % 10, carry)
        if operator == "+":
            assert x + y + carry == 10 * tens + units
        else:
            assert x - y - carry == units - 10 * tens
        carry, done = tens, f"{units}{done}"
        assert found == done
    if operator == "-" and carry:
        assert lines.popleft() == "<0"
        positive = walk_block(lines, b, "-", a)
        assert lines.popleft() == f"=-{positive}"
        return -positive
    return closed(lines, carry, done)


def walk_product(lines, a, b):
    if b < 10:
        return walk_partial(lines, a, b, "")
    parts = []
    for digit, zeros in ((b % 10, ""), (b // 10, "0")):
        assert lines.popleft() == f"{a}*{digit}{zeros}"
        parts.append(walk_partial(lines, a, digit, zeros))
    return walk_block(lines, parts[0], "+", parts[1])


def walk_partial(lines, a, digit, zeros):
    carry, done = 0, zeros
    for place in range(len(str(a))):
        x, y, carry_in, tens, units, found = column(lines, "*")
        assert (x, y, carry_in) == (a // 10**place % 10, digit, carry)
        assert x * y + carry == 10 * tens + units
        carry, done = tens, f"{units}{done}"
        assert found == done
    return closed(lines, carry, done)


def column(lines, operator):
    """x, y, carry, tens, units: one digit each, so that no step asks for more."""
    second = "-" if operator == "-" else "+"
    pattern = rf"([0-9])\{operator}([0-9])\{second}([0-9])=([0-9])([0-9])>([0-9]+)"
    x, y, carry, tens, units, found = re.fullmatch(pattern, lines.popleft()).groups()
    return int(x), int(y), int(carry), int(tens), int(units), found


def closed(lines, carry, done):
    value = int(f"{carry}{done}")
    assert lines.popleft() == f"={value}"
    return value


@each_split
def test_each_step_of_the_reasoning_follows_from_the_one_before(split):
    seen = set()
    rng = Random(11)
    for _ in range(400):
        sample = arithmetic.draw_form(rng, split, thinking=True)
        expression = sample.expected["expression"]
        lines = deque(sample.answer["reasoning_content"].split("\n"))
        assert walk(lines, expression) == plain_value(expression) == int(sample.answer["content"])
        assert not lines
        seen.add((sample.facts["operation"], int(sample.answer["content"]) < 0))
    assert {operation for operation, _ in seen} == {"add", "sub", "mul", "sum", "chain"}
    assert ("sub", True) in seen


def test_the_reasoning_of_an_addition_reads_as_described():
    expression = arithmetic.Expression(numbers=(347, 86), operators="+")
    steps = "347+86\n7+6+0=13>3\n4+8+1=13>33\n3+0+1=04>433\n=433"
    assert arithmetic.reasoning(expression) == steps


def test_with_and_without_thinking_the_same_state_asks_the_same():
    for seed in range(30):
        thinking, direct = (
            arithmetic.draw_form(Random(seed), "train", thinking=is_on) for is_on in (True, False)
        )
        assert thinking.messages == direct.messages
        assert thinking.answer["content"] == direct.answer["content"]
        assert "reasoning_content" not in direct.answer


def test_only_the_result_itself_is_a_right_number():
    for sample in draws(arithmetic, "train", 60):
        value = sample.expected["value"]
        assert arithmetic.is_right(sample, f"The answer is {value}.")
        for wrong in (
            value + 1,
            -value - 1,
            f"{value}0",
            f"{value}.5",
            f"0{value}",
            f"{value} or {value + 1}",
        ):
            assert not arithmetic.is_right(sample, str(wrong))


def ways_of(patterns, split):
    return [way for group in phrases.ways(patterns, split) for way in group]


@each_split
def test_expressions_and_names_of_sums_belong_to_their_split(split):
    worded = arithmetic_words.WORDED.values()
    templates = [as_pattern(way) for patterns in worded for way in ways_of(patterns, split)]
    for sample in draws(arithmetic, split, 300):
        assert split_of(sample.expected["expression"]) == split
        if not sample.facts["worded"]:
            continue
        matches = (template.fullmatch(sample.messages[0]["content"]) for template in templates)
        found = next(match for match in matches if match)
        names = [found.groupdict().get(key) for key in ("name", "other")]
        assert all(split_of(name.lower()) == split for name in names if name)
        things = found.groupdict().get("things")
        assert not things or split in (split_of(things), split_of(things.removesuffix("s")))


def test_held_out_sums_are_worded_as_no_sum_of_training_is():
    trained = ways_of(arithmetic_words.BARE, "train")
    for patterns in arithmetic_words.WORDED.values():
        trained += ways_of(patterns, "train")
    trained.remove("{e}")  # alone it would match any question
    patterns = [as_pattern(template) for template in trained]
    for sample in draws(arithmetic, "held_out", 200):
        assert not any(pattern.fullmatch(sample.messages[0]["content"]) for pattern in patterns)
        assert not re.fullmatch(r"[-0-9 +*]+", sample.messages[0]["content"])


# Phrases


EVERY_PATTERNS = [
    arithmetic_words.BARE,
    *arithmetic_words.WORDED.values(),
    tool_words.REQUESTS,
    tool_words.DESCRIPTIONS,
    needle.FACTS,
    needle.QUESTIONS,
    about_topics.EXPLAIN,
    about.unknown().questions,
    *(topic.questions for topic in about.topics() if not topic.things),
    *sql_words.TEMPLATES.values(),
]


@pytest.mark.parametrize("patterns", EVERY_PATTERNS, ids=lambda patterns: patterns[0][:20])
def test_held_out_ways_are_new_combinations_of_words_that_training_has_for_the_same_thing(patterns):
    train, held_out = (
        [phrases.words_of(way) for way in ways_of(patterns, split)] for split in ("train", "held_out")
    )
    assert len(train) == len(set(train)) >= 8
    assert held_out
    assert not set(train) & set(held_out)
    assert combined(held_out, 1) <= combined(train, 1)


def combined(ways, parts):
    return {pair for words in ways for pair in combinations(sorted(set(words)), parts)}


@pytest.mark.parametrize(
    "patterns",
    [tool_words.REQUESTS, needle.QUESTIONS, arithmetic_words.BARE, *sql_words.TEMPLATES.values()],
    ids=lambda patterns: patterns[0][:20],
)
def test_two_words_of_a_held_out_way_stand_together_in_training_too(patterns):
    train, held_out = (
        [phrases.words_of(way) for way in ways_of(patterns, split)] for split in ("train", "held_out")
    )
    assert combined(held_out, 2) <= combined(train, 2)


def test_made_up_words_are_syllables_blends_and_any_letters_but_never_words_of_sql():
    for split in ("train", "held_out"):
        rng = Random(split)
        made = [words.word(rng, split) for _ in range(3000)]
        assert all(words.split_of(word) == split for word in made)
        assert not set(made) & set(lexicon.RESERVED.split())
        assert 100 < sum(not set(word) & set("aeiou") for word in made) < 300  # no syllable, no blend
        heads = tuple({word[:3] for word in words.of_split(lexicon.THINGS, split)})
        assert sum(word.startswith(heads) for word in made) > 350


def test_a_pattern_stands_for_every_combination_of_its_choices():
    assert phrases.expanded("[Show|List] {x}[ please|].") == [
        "Show {x} please.",
        "Show {x}.",
        "List {x} please.",
        "List {x}.",
    ]
    assert phrases.expanded("plain") == ["plain"]


# Tool calls


def call_message(*calls):
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}
            for call in calls
        ],
    }


def dsml(*calls):
    prompt = render(encode_messages([USER]))
    return render(encode_history([USER, call_message(*calls)])).removeprefix(prompt).removesuffix(EOS.text)


letters = st.characters(exclude_categories=["Cs"], exclude_characters="｜")
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='｜"\n'), min_size=1, max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
nested = st.recursive(
    scalars | st.text(letters, max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(letters, max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
tool_call = st.builds(
    tool_calls.ToolCall,
    name=names,
    arguments=st.dictionaries(names, st.text(letters, max_size=12) | nested, max_size=3),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(tool_call, min_size=1, max_size=2))
def test_the_parser_reads_what_the_encoder_writes(calls):
    assert tool_calls.parse_calls(dsml(*calls)) == tuple(calls)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *("<｜DSML｜function_calls>", "</｜DSML｜function_calls>", '<｜DSML｜invoke name="f">', "\n"),
                *("</｜DSML｜invoke>", '<｜DSML｜parameter name="p" string="false">', "</｜DSML｜parameter>"),
                *("1", "NaN", '"', "[" * 3000, "9" * 5000, "é", "\ud800"),
            ]
        ),
        max_size=14,
    )
)
def test_no_text_makes_the_parser_raise(pieces):
    calls = tool_calls.parse_calls("".join(pieces))
    assert calls is None or all(call.name == "f" for call in calls)


def test_a_call_that_lacks_or_repeats_one_character_is_wrong():
    calls = [sample for sample in draws(tool_calls, "train", 12) if sample.facts["stage"] == "call"]
    for sample in calls[:3]:
        text = written(sample, sample.answer).strip()
        for place in range(len(text)):
            assert not tool_calls.is_right(sample, text[:place] + text[place + 1 :])
            assert not tool_calls.is_right(sample, text[: place + 1] + text[place:])


@pytest.mark.parametrize(
    "value",
    ["", "NaN", "Infinity", '"text"', "{", "1 2", "[" * 100_000, "1</｜DSML｜parameter>", "9" * 5_000],
    ids=lambda value: value[:8],
)
def test_values_that_are_no_json_or_a_string_in_json_are_refused(value):
    good = dsml(tool_calls.ToolCall(name="f", arguments={"p": 1}))
    assert tool_calls.parse_calls(good) is not None
    assert tool_calls.parse_calls(good.replace(">1<", f">{value}<")) is None


def test_text_around_a_call_a_parameter_twice_and_an_empty_block_are_refused():
    good = dsml(tool_calls.ToolCall(name="f", arguments={"p": 1, "q": 2}))
    assert tool_calls.parse_calls(f"Sure. {good}") is None
    assert tool_calls.parse_calls(f"{good} Done.") is None
    assert tool_calls.parse_calls(good.replace('"q"', '"p"')) is None
    assert tool_calls.parse_calls("<｜DSML｜function_calls>\n\n</｜DSML｜function_calls>") is None


def test_a_wrong_type_name_value_or_further_call_is_wrong():
    sample = next(
        sample
        for sample in draws(tool_calls, "train")
        if sample.facts["stage"] == "call"
        and {type(value) for value in sample.expected["arguments"].values()} >= {int, bool}
    )
    name, arguments = sample.expected["name"], dict(sample.expected["arguments"])
    right = tool_calls.ToolCall(name=name, arguments=arguments)
    assert tool_calls.is_right(sample, dsml(right))
    assert not tool_calls.is_right(sample, dsml(right, right))
    assert not tool_calls.is_right(sample, dsml(tool_calls.ToolCall(name=f"{name}s", arguments=arguments)))
    for key, value in arguments.items():
        others = (f"{value}", [value], 1.0 * value, value + 1) if isinstance(value, int) else (f"{value}x",)
        for other in others:
            damaged = tool_calls.ToolCall(name=name, arguments={**arguments, key: other})
            assert not tool_calls.is_right(sample, dsml(damaged))
        left = {other: arguments[other] for other in arguments if other != key}
        assert not tool_calls.is_right(sample, dsml(tool_calls.ToolCall(name=name, arguments=left)))


def task_of(tool):
    """What a description says that the tool does."""
    found = re.search(r"(?:^|to |can |will |lets you )(\w+ the \w+)\.$", tool["description"])
    return found[1].lower()


@each_split
def test_the_tool_to_call_is_the_one_whose_description_the_question_repeats(split):
    for sample in draws(tool_calls, split):
        tools = [tool["function"] for tool in sample.tools]
        question = sample.messages[0]["content"].lower()
        named = [tool for tool in tools if re.search(rf"\b{task_of(tool)}\b", question)]
        assert len(named) == 1
        if sample.facts["stage"] == "call":
            assert named[0]["name"] == sample.expected["name"]
            assert list(named[0]["parameters"]["properties"]) == list(sample.expected["arguments"])


JSON_TYPES = {"string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}


@each_split
def test_arguments_are_of_the_types_in_the_schema_which_names_do_not_tell(split):
    seen = {}
    for sample in draws(tool_calls, split, 500):
        for tool in sample.tools:
            for name, schema in tool["function"]["parameters"]["properties"].items():
                seen.setdefault(name, set()).add(schema["type"])
            if tool["function"]["name"] == sample.expected.get("name"):
                properties = tool["function"]["parameters"]["properties"]
                for name, value in sample.expected["arguments"].items():
                    assert type(value) in JSON_TYPES[properties[name]["type"]]
    assert sum(len(types) > 1 for types in seen.values()) > 20


def test_most_names_of_parameters_are_seen_but_once():
    names = [
        name
        for sample in draws(tool_calls, "train", 500)
        for tool in sample.tools
        for name in tool["function"]["parameters"]["properties"]
    ]
    assert sum(count for count in Counter(names).values() if count == 1) > len(names) / 2


@each_split
def test_a_round_trip_reports_the_result_of_the_call_that_came(split):
    rng = Random(5)
    for _ in range(60):
        sample, report_of = tool_calls.round_trip(rng, split)
        assert sample.facts["stage"] == "call"
        (call,) = tool_calls.parse_calls(written(sample, sample.answer))
        report = report_of(call)
        assert report.messages[0] == sample.messages[0]
        assert report.facts["stage"] == "answer"
        assert report == report_of(call)
        assert tool_calls.is_right(report, written(report, report.answer))
        other = tool_calls.ToolCall(name="other", arguments={})
        assert report_of(other).expected != report.expected


def test_a_report_with_another_value_key_or_order_is_wrong():
    for sample in draws(tool_calls, "train"):
        if sample.facts["stage"] == "call":
            continue
        text = sample.answer["content"]
        key, value = next(iter(sample.expected["values"].items()))
        wrong = [f"{value}", text.replace(f" {value}", f" {value}1"), text.replace(f" {key} ", " thing ")]
        wrong += [text + " " + text, text.replace(f" {value}", f" {str(value)[:-1]}")]
        assert not any(tool_calls.is_right(sample, answer) for answer in wrong)


@each_split
def test_arguments_and_results_of_tools_belong_to_their_split(split):
    for sample in draws(tool_calls, split):
        values = sample.expected.get("arguments", sample.expected.get("values"))
        for value in values.values():
            if isinstance(value, str) or type(value) is int:
                assert split_of(str(value).lower()) == split


def test_held_out_tools_are_unknown_in_training():
    train, held_out = (
        {tool["function"]["name"] for sample in draws(tool_calls, split, 300) for tool in sample.tools}
        for split in SPLITS
    )
    assert train
    assert not train & held_out


# Needles


def place_of(sample):
    """Where in the text before the question the asked-for fact begins, as a share."""
    text = sample.messages[0]["content"].rpartition("\n\n")[0]
    return re.search(rf"\b{sample.expected['name']}\b", text).start() / len(text)


@pytest.mark.parametrize("tokens", [150, 400, 900, 4096])
def test_texts_are_about_as_long_as_wanted(tokens):
    for seed in range(4):
        for per_token in (needle.CHARS_PER_TOKEN, 2.5):
            sample = needle.draw_at(
                Random(seed), "held_out", tokens=tokens, depth=0.5, chars_per_token=per_token
            )
            content = sample.messages[0]["content"]
            assert len(content) == pytest.approx(tokens * per_token, rel=0.02, abs=90)
            assert sample.facts["tokens"] == tokens


def test_lists_grow_with_the_wanted_length():
    lengths = [
        len(needle.draw_list(Random(1), "train", tokens=tokens, depth=0.5).messages[0]["content"])
        for tokens in (100, 300, 900)
    ]
    assert all(2 < longer / shorter < 5 for shorter, longer in pairwise(lengths))


@pytest.mark.parametrize("depth", [0.0, 0.3, 0.5, 1.0])
def test_the_fact_stands_at_the_wanted_depth(depth):
    for seed in range(6):
        for drawn in (needle.draw_at, needle.draw_list):
            sample = drawn(Random(seed), "train", tokens=1500, depth=depth)
            assert place_of(sample) == pytest.approx(depth, abs=0.08)


@each_split
def test_the_value_is_stated_once_beside_the_name(split):
    for sample in draws(needle, split):
        content = sample.messages[0]["content"]
        asked = content.rpartition("\n\n")[2]
        value, name = sample.expected["value"], sample.expected["name"]
        stating = [part for part in re.split(r"(?<=\.) |\n", content) if re.search(rf"\b{name}\b", part)]
        assert len(stating) == 2  # the fact and the question
        assert stating[-1] in asked
        assert re.search(rf"\b{value}\b", stating[0])


def test_other_values_and_cut_values_are_wrong():
    for sample in draws(needle, "train", 60):
        value = sample.expected["value"]
        assert needle.is_right(sample, f"{value}")
        for wrong in (f"{value}1", value[:-1], value[1:], f"{value} or 7", f"{value}.."):
            assert not needle.is_right(sample, wrong)


@each_split
def test_made_up_words_and_numbers_of_needles_belong_to_their_split(split):
    templates = (
        *(needle.OPENINGS, needle.CLAUSES, needle.FACTS, needle.QUESTIONS, needle.LIST_HEADS),
        ("value",),
    )
    plain = {word.lower() for options in templates for text in options for word in words_in(text)}
    for sample in draws(needle, split, 60):
        content = sample.messages[0]["content"]
        made_up = {word.lower() for word in words_in(content)} - plain
        assert made_up
        assert all(split_of(word) == split for word in made_up)
        assert all(split_of(number) == split for number in re.findall("[0-9]+", content))


def test_what_is_asked_for_is_nearly_always_another_thing():
    asked = [sample for sample in draws(needle, "train", 300) if sample.facts["form"] == "text"]
    kinds = [re.match("The (.+) of ", sample.answer["content"])[1] for sample in asked]
    assert len(set(kinds)) > 0.8 * len(kinds)
    assert {len(kind.split()) for kind in kinds} == {1, 2}


def test_held_out_texts_have_sentences_of_their_own_made_of_known_words():
    for options, held_out in (
        (needle.OPENINGS, needle.HELD_OUT_OPENINGS),
        (needle.CLAUSES, needle.HELD_OUT_CLAUSES),
    ):
        train, kept = (
            {word.lower() for text in texts for word in words_in(text)}
            for texts in (
                (*needle.OPENINGS[: -needle.HELD_OUT_OPENINGS], *needle.CLAUSES[: -needle.HELD_OUT_CLAUSES]),
                options[-held_out:],
            )
        )
        assert kept <= train
        assert not set(options[-held_out:]) & set(options[:-held_out])


def test_impossible_lengths_and_depths_are_refused():
    with pytest.raises(ValueError, match="tokens is 0: must be 1 or more"):
        needle.draw_at(Random(0), "train", tokens=0, depth=0.5)
    with pytest.raises(ValueError, match=r"depth is 1\.5: must be between 0 \(the start\) and 1 \(the end\)"):
        needle.draw_list(Random(0), "train", tokens=100, depth=1.5)


# About


def asked(sample):
    return re.sub(r"[^a-z ]", "", sample.messages[-1]["content"].lower())


def test_no_answer_is_right_for_another_topic():
    samples = {sample.answer["content"]: sample for sample in draws(about, "train", 1500)}
    assert len(samples) == len(about.topics()) + 1  # and the answer to the unknown
    for answer, sample in samples.items():
        taken = [other for other in samples if other != answer and about.is_right(sample, other)]
        assert not taken, sample.facts


def test_answers_are_short_and_every_key_is_in_its_answer():
    for topic in about.topics():
        assert len(topic.answer.split()) <= 30
        assert all(key in topic.answer.lower() for key in topic.keys)
        assert topic.questions or topic.things


def test_no_question_has_two_answers_in_either_split():
    answers = {}
    for split in SPLITS:
        for sample in draws(about, split, 1500):
            answers.setdefault(asked(sample), set()).add(sample.answer["content"])
    assert all(len(given) == 1 for given in answers.values())


def test_held_out_ways_to_ask_are_not_those_of_training():
    train, held_out = ({asked(sample) for sample in draws(about, split, 1500)} for split in SPLITS)
    # "Hello!" and "Hello" are one greeting: only words count here, and no way is held out by its marks alone.
    assert not train & held_out


def test_what_is_not_in_the_table_is_answered_with_not_knowing():
    unknown = [sample for sample in draws(about, "held_out", 300) if sample.facts["topic"] == "unknown"]
    assert len({asked(sample) for sample in unknown}) > 20
    assert all(sample.answer["content"].startswith("I do not know.") for sample in unknown)
