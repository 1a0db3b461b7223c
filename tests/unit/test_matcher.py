"""A matcher's masks follow from its grammar and the tokens so far, whatever way it came there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.matchers import matcher_of
from bench.random_schema import random_schema
from ingress.json_grammar import JsonRules
from ingress.tokens import Tokenizer
from model.grammar import FOREIGN_ROW_ITEMS, GrammarError, Grammars
from model.matcher import Matcher
from model.sampler import Draw, Drawn, sample
from model.sampling import FOREIGN, Sampling
from tests.unit.loopback_engine import FIRST_BYTE_ID

EOS, END_THINK, VOCAB = 1, 6, 272
DEAR = FOREIGN + 'start: a\na: a a a | "x" | ""\n'  # each token more can be read in more ways


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer.directory, vocab_size=VOCAB, end_ids=[EOS])


def matcher(
    grammars: Grammars, grammar: str, emitted: Sequence[int] = (), after: int | None = None
) -> Matcher:
    told = Sampling(max_tokens=1, grammar=grammar, grammar_after=after)
    return matcher_of(grammars, grammars.compile(grammar), told, emitted)


def ids_of(mask_V: torch.Tensor | None) -> list[int]:
    assert mask_V is not None
    return mask_V.nonzero().squeeze(-1).tolist()


@dataclass
class Walk:
    """Tokens drawn at random from what was allowed, and what was allowed before each and after the last."""

    tokens: list[int]
    allowed: list[list[int]]


def walk(one: Matcher, random: Random, most: int = 60) -> Walk:
    done = Walk([], [ids_of(one.allowed())])
    while done.allowed[-1] != [EOS] and len(done.tokens) < most:
        done.tokens.append(random.choice([token for token in done.allowed[-1] if token != EOS]))
        one.advance(done.tokens[-1])
        done.allowed.append(ids_of(one.allowed()))
    return done


def json_grammar(schema: dict) -> str:
    return f"start: {JsonRules(is_strict=True).rule(schema, 'schema')}\n"


@settings(max_examples=15)
@given(st.integers(0, 10**9))
def test_replay_and_drafts_come_to_the_same_masks(grammars: Grammars, seed: int) -> None:
    random = Random(seed)
    grammar = json_grammar(random_schema(random))
    done = walk(matcher(grammars, grammar), random)
    place = random.randint(0, len(done.tokens))
    resumed = matcher(grammars, grammar, done.tokens[:place])
    for depth in range(min(4, len(done.tokens) - place) + 1):
        drafts = done.tokens[place : place + depth]
        assert ids_of(resumed.allowed(drafts)) == done.allowed[place + depth]
    for token_id, expected in zip(done.tokens[place:], done.allowed[place + 1 :], strict=True):
        wrong = [draft for draft in range(16, 40) if draft not in ids_of(resumed.allowed())][:1]
        assert wrong == [] or resumed.allowed(wrong) is None
        resumed.advance(token_id)
        assert ids_of(resumed.allowed()) == expected


def test_nothing_is_held_to_a_grammar_before_it_begins_and_nothing_ends(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    a, b, c = tokenizer.encode_text("abc")
    one = matcher(grammars, 'start: "ab"\n', after=END_THINK)
    anything = [token for token in range(VOCAB) if token != EOS]
    assert ids_of(one.allowed()) == ids_of(one.allowed([c, c])) == anything
    assert ids_of(one.allowed([c, END_THINK])) == [a]
    assert ids_of(one.allowed([END_THINK, a])) == [b]
    for token in (c, END_THINK, a):
        one.advance(token)
    for same in (one, matcher(grammars, 'start: "ab"\n', [c, END_THINK, a], after=END_THINK)):
        assert ids_of(same.allowed()) == [b]
        assert ids_of(same.allowed([b])) == [EOS]
        assert same.allowed([b, EOS]) is None
        assert same.error is None


def test_no_text_can_hold_a_special_token_but_a_grammar_can_ask_for_one(grammars: Grammars) -> None:
    assert [token for token in ids_of(matcher(grammars, "start: /.*/\n").allowed()) if token < 16] == [EOS]
    assert ids_of(matcher(grammars, "start: <[7]>\n").allowed()) == [7]


def test_a_grammar_that_costs_too_much_ends_in_an_error_and_no_token(grammars: Grammars) -> None:
    one, x = matcher(grammars, DEAR), FIRST_BYTE_ID + ord("x")
    assert ids_of(one.allowed()) == [EOS, x]
    for _ in range(FOREIGN_ROW_ITEMS):
        one.advance(x)
    assert one.error is not None
    assert ids_of(one.allowed()) == []
    assert matcher(grammars, DEAR).error is None  # what was compiled is as it was


def test_what_ends_a_grammar_is_still_known_when_drafts_were_tried_after_it(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "model.grammar.MASK_ITEMS", 100
    )  # only a mask costs as much, not the taking of a token
    one, x = matcher(grammars, DEAR), FIRST_BYTE_ID + ord("x")
    while ids_of(one.allowed()):
        one.allowed([x, x])
        one.advance(x)
    why = one.error
    assert why is not None
    assert one.allowed([x]) is None, "nobody will ask what follows a token that may not come"
    assert one.error == why


def test_masks_may_take_so_much_time_and_no_more(grammars: Grammars, tokenizer: Tokenizer) -> None:
    passed_s = [0.0]

    def clock() -> float:
        passed_s[0] += 0.3
        return passed_s[0]

    begun = grammars.compile("start: /a*/\n")
    one = Matcher(begun, end_ids=[EOS], vocab_size=VOCAB, clock=clock)
    a = tokenizer.encode_text("a")
    for _ in range(3):
        assert ids_of(one.allowed()) == [EOS, *a]
        one.advance(a[0])
    assert ids_of(one.allowed()) == []
    assert one.error == "its masks take too long to compute"


@pytest.mark.parametrize("text", ["start: b\n", "start: /(?=a)/\n", "root = 1", "", "start: " + "(" * 5000])
def test_what_is_no_grammar_is_refused(grammars: Grammars, text: str) -> None:
    with pytest.raises(GrammarError):
        grammars.compile(text)


def test_gbnf_is_read_too(grammars: Grammars, tokenizer: Tokenizer) -> None:
    assert ids_of(matcher(grammars, 'root ::= "ab" | "ac"\n').allowed()) == tokenizer.encode_text("a")


# What the sampler makes of a mask


def drawn(logits_V: torch.Tensor, allowed: Sequence[int], **told: float | int) -> Drawn:
    mask_V = torch.zeros(len(logits_V), dtype=torch.bool)
    mask_V[list(allowed)] = True
    sampling = Sampling(max_tokens=1, **told)  # type: ignore[arg-type]
    draw = Draw(
        sampling=sampling,
        position=0,
        prompt_ids=(),
        emitted_ids=(),
        forbidden_ids=(3,),
        allowed_V=mask_V,
    )
    return sample(logits_V[None], [draw])[0]


@given(st.integers(0, 10**9))
def test_only_what_is_allowed_is_drawn_and_logprobs_are_those_without_a_mask(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_V = torch.randn(12, generator=generator) * 4
    allowed = Random(seed).sample(range(12), 4)
    usable = [token for token in allowed if token != 3]
    free = drawn(logits_V, range(12), temperature=0.0, logprobs=2)
    for told in ({"temperature": 0.0}, {"seed": seed}, {"top_p": 0.3}, {"top_k": 2}, {"temperature": 1e-30}):
        token = drawn(logits_V, allowed, logprobs=2, **told)
        assert token.token_id in usable
        assert token.top == free.top
        assert token.logprob == float(torch.log_softmax(logits_V, -1)[token.token_id])
    assert drawn(logits_V, allowed, temperature=0.0).token_id == max(usable, key=lambda t: float(logits_V[t]))


def test_what_must_not_come_yet_comes_where_nothing_else_may_and_nothing_where_nothing_may() -> None:
    logits_V = torch.zeros(12)
    for told in ({"temperature": 0.0}, {"seed": 1}):
        assert drawn(logits_V, [3], **told) == Drawn(3)
        assert not drawn(logits_V, [], **told).finite
