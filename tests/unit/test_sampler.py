"""From logits to a token, against the obvious way of doing it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.sampler import Draw, Drawn, sample, uniform
from model.sampling import Sampling

VOCAB = 24
DRAWS = 600


def draw(position: int = 5, *, prompt=(), emitted=(), forbidden=(), **sampling: object) -> Draw:
    return Draw(
        sampling=Sampling(max_tokens=100, **sampling),
        position=position,
        prompt_ids=list(prompt),
        emitted_ids=list(emitted),
        forbidden_ids=tuple(forbidden),
    )


def logits(*rows: int, seed: int = 0, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(*rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2


def one(logits_V: torch.Tensor, how: Draw) -> Drawn:
    [drawn] = sample(logits_V[None], [how])
    return drawn


def frequencies(logits_V: torch.Tensor, num_draws: int = DRAWS, **sampling: object) -> list[float]:
    """How often each token is drawn over many positions."""
    draws = [draw(position, seed=11, **sampling) for position in range(num_draws)]
    drawn = sample(logits_V.expand(num_draws, -1), draws)
    counts = Counter(one.token_id for one in drawn)
    return [counts[token] / num_draws for token in range(len(logits_V))]


def assert_distributed(got: list[float], expected: list[float], num_draws: int = DRAWS) -> None:
    """Pearson's chi-square within five sigma of its mean; tokens of probability 0 never."""
    assert all(g == 0 for g, e in zip(got, expected, strict=True) if e == 0)
    likely = [(g, e) for g, e in zip(got, expected, strict=True) if e * num_draws >= 5]
    chi_square = sum(num_draws * (g - e) ** 2 / e for g, e in likely)
    assert chi_square < len(likely) + 5 * math.sqrt(2 * len(likely))


def by_hand(
    logits_V: torch.Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> list[float]:
    """The distribution that is left: likeliest first, cut by top_k, then top_p and min_p of that."""
    order = sorted(range(len(logits_V)), key=lambda i: (-float(logits_V[i]), i))
    order = order[:top_k] if top_k else order
    weights = {i: math.exp(float(logits_V[i]) / temperature) for i in order}
    total = sum(weights.values())
    probs = {i: weight / total for i, weight in weights.items()}
    kept, before = [], 0.0
    for i in order:
        if kept and (before >= top_p or probs[i] < min_p * probs[order[0]]):
            break
        kept.append(i)
        before += probs[i]
    left = sum(probs[i] for i in kept)
    return [probs[i] / left if i in kept else 0.0 for i in range(len(logits_V))]


def test_a_bias_is_added_to_the_logit_and_not_to_the_logprob():
    row = logits(1, seed=3)[0]
    likeliest = int(row.argmax())
    banned = one(row, draw(temperature=0.0, logit_bias=((likeliest, -100.0),), logprobs=3))
    assert banned.token_id == int(row.topk(2).indices[1])
    plain = one(row, draw(temperature=0.0, logprobs=3))
    assert banned.top == plain.top
    assert banned.logprob == banned.top[1][1]
    biased = row.clone()
    biased[[2, 9]] += torch.tensor([3.0, -1.0])
    for position in range(50):
        how = {"seed": 5, "top_p": 0.9}
        drawn = one(row, draw(position, **how, logit_bias=((2, 3.0), (9, -1.0))))
        assert drawn.token_id == one(biased, draw(position, **how)).token_id


def test_what_is_forbidden_stays_so_whatever_its_bias():
    row = logits(1, seed=3)[0]
    for temperature in (0.0, 1.0):
        how = draw(temperature=temperature, logit_bias=((4, 100.0), (5, 90.0)), forbidden=(4,))
        assert one(row, how).token_id == 5


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 5), st.integers(0, 2**31))
def test_greedy_takes_the_largest_and_the_lowest_id_among_equals(vocab, num_values, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, num_values, (3, vocab), generator=generator).float()
    drawn = sample(rows, [draw(temperature=0.0)] * 3)
    assert [one.token_id for one in drawn] == [row.index(max(row)) for row in rows.tolist()]


def test_greedy_among_equals_stays_lowest_with_penalties_too():
    rows = torch.zeros(2, VOCAB)
    drawn = sample(rows, [draw(temperature=0.0, emitted=[0, 1], presence_penalty=1.0)] * 2)
    assert [one.token_id for one in drawn] == [2, 2]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_sampled_tokens_follow_the_softmax_at_that_temperature(temperature: float):
    row = logits(seed=1)
    assert_distributed(frequencies(row, temperature=temperature), by_hand(row, temperature))


@pytest.mark.parametrize(
    "cut",
    [
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 1000},
        {"top_p": 0.5},
        {"top_p": 1e-9},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"top_k": 8, "top_p": 0.7, "min_p": 0.1, "temperature": 1.7},
    ],
)
def test_top_k_top_p_and_min_p_leave_what_they_should(cut: dict[str, float]):
    row = logits(seed=2)
    assert_distributed(frequencies(row, **cut), by_hand(row, **cut))


@pytest.mark.parametrize("few", [1, 8, 63])
@pytest.mark.parametrize("values", [None, 3])
@pytest.mark.parametrize(
    "cut", [{"top_p": 0.9}, {"top_p": 0.3, "min_p": 0.2}, {"min_p": 0.01}, {"top_k": 20}]
)
def test_a_cut_found_among_few_is_the_cut_among_all(
    few: int, values: int | None, cut: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    rows = logits(30, seed=4) if values is None else logits(30, seed=4).abs().mul(values).floor()
    draws = [draw(position, seed=9, **cut) for position in range(30)]
    among_all = sample(rows, draws)
    monkeypatch.setattr("model.sampler.MANY", 1)
    monkeypatch.setattr("model.sampler.FEW", few)
    assert sample(rows, draws) == among_all


def test_ties_at_the_cut_of_top_k_go_to_the_lowest_ids():
    got = frequencies(torch.zeros(VOCAB), num_draws=400, top_k=3)
    assert [token for token, frequency in enumerate(got) if frequency] == [0, 1, 2]


def test_a_certain_token_is_always_drawn():
    row = torch.full((VOCAB,), -200.0)
    row[17] = 200.0
    assert frequencies(row, num_draws=200)[17] == 1.0


def test_the_smallest_temperature_is_greedy():
    row = logits(seed=3)
    for temperature in (1e-6, 1e-20, 1e-37, 1e-40, 5e-324):
        assert one(row, draw(temperature=temperature)).token_id == int(row.argmax())


def test_noise_depends_on_seed_and_position_only():
    row = logits(seed=4)
    how = {"temperature": 1.5, "seed": 3}
    expected = one(row, draw(9, **how)).token_id
    company = logits(6, seed=5)
    for place in range(7):
        rows = torch.cat([company[:place], row[None], company[place:]])
        draws = [draw(i, temperature=0.7, seed=i) for i in range(7)]
        draws[place] = draw(9, prompt=[1, 2], emitted=[3], **how)
        assert sample(rows, draws)[place].token_id == expected
    others = {one(row, draw(position, temperature=1.5, seed=3)).token_id for position in range(50)}
    seeds = {one(row, draw(9, temperature=1.5, seed=seed)).token_id for seed in range(50)}
    assert len(others) > 3
    assert len(seeds) > 3


def test_uniform_is_flat_fixed_and_takes_every_seed():
    values = [uniform(seed, position) for seed in range(20) for position in range(200)]
    assert all(0.0 <= value < 1.0 for value in values)
    assert len(set(values)) == len(values)
    tenths = Counter(int(value * 10) for value in values)
    assert all(300 < tenths[i] < 500 for i in range(10))
    # Written down: a resumed sequence must draw the same on another build.
    assert [uniform(0, 0), uniform(1, 2), uniform(-5, 1000)] == [
        0.0564663990004608,
        0.6434025071674214,
        0.11546728057821887,
    ]
    assert [uniform(seed, 2**40) < 1.0 for seed in (-(2**63), 2**63 - 1)] == [True, True]


def penalised(row: list[float], how: Draw) -> list[float]:
    """One token after another, as the definitions say."""
    sampling, out = how.sampling, []
    for token, value in enumerate(row):
        if token in how.prompt_ids or token in how.emitted_ids:
            factor = sampling.repetition_penalty
            value = value / factor if value > 0 else value * factor
        count = list(how.emitted_ids).count(token)
        value -= sampling.frequency_penalty * count + sampling.presence_penalty * (count > 0)
        out.append(-math.inf if token in how.forbidden_ids else value)
    return out


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=10),
    st.lists(st.integers(0, VOCAB - 1), max_size=20),
    st.lists(st.integers(0, VOCAB - 1), max_size=4),
    st.sampled_from([0.0, 0.5, -2.0, 2.0]),
    st.sampled_from([0.0, 0.25, -1.0, 2.0]),
    st.sampled_from([1.0, 0.5, 1.3, 100.0]),
    st.integers(0, 2**31),
)
def test_penalties_are_those_of_the_definitions(
    prompt, emitted, forbidden, presence, frequency, repetition, seed
):
    row = logits(seed=seed)
    how = draw(
        prompt=prompt,
        emitted=emitted,
        forbidden=forbidden,
        temperature=0.0,
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
    )
    before = row.clone()
    expected = penalised(row.tolist(), how)
    chosen = one(row, how).token_id
    assert expected[chosen] == pytest.approx(max(expected), abs=1e-4)
    assert torch.equal(row, before), "the caller's logits were changed"


def test_forbidden_tokens_are_never_drawn_however_likely():
    row = logits(seed=6)
    row[[3, 7]] = 50.0
    assert one(row, draw(temperature=0.0, forbidden=[3, 7])).token_id not in (3, 7)
    drawn = sample(
        row.expand(300, -1), [draw(i, temperature=2.0, forbidden=[3, 7], top_p=0.99) for i in range(300)]
    )
    assert not {one.token_id for one in drawn} & {3, 7}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_says_so_and_its_neighbours_do_not_care(bad: float):
    rows = logits(3, seed=7)
    expected = sample(rows, [draw(temperature=0.0, logprobs=2), draw(), draw(temperature=1.0)])
    rows[1, 5] = bad
    drawn = sample(rows, [draw(temperature=0.0, logprobs=2), draw(), draw(temperature=1.0)])
    assert [one.finite for one in drawn] == [True, False, True]
    assert (drawn[0], drawn[2]) == (expected[0], expected[2])


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_logprobs_are_of_the_unmodified_distribution(temperature: float):
    row = logits(seed=8)
    expected = torch.log_softmax(row.double(), -1)
    order = sorted(range(VOCAB), key=lambda i: -float(expected[i]))
    how = draw(
        temperature=temperature,
        logprobs=4,
        top_k=5,
        presence_penalty=1.0,
        repetition_penalty=1.5,
        emitted=order[:2],
        forbidden=[order[2]],
    )
    drawn = one(row, how)
    assert drawn.logprob == pytest.approx(float(expected[drawn.token_id]), abs=1e-5)
    assert [token for token, _ in drawn.top] == order[:4]
    assert [value for _, value in drawn.top] == pytest.approx(
        [float(expected[i]) for i in order[:4]], abs=1e-5
    )


def test_logprobs_come_only_when_asked_for():
    row = logits(seed=9)
    assert (one(row, draw()).logprob, one(row, draw()).top) == (None, ())
    of_the_token_only = one(row, draw(logprobs=0))
    assert of_the_token_only.logprob is not None
    assert of_the_token_only.top == ()


def test_ties_among_the_top_logprobs_are_listed_by_id():
    assert [token for token, _ in one(torch.zeros(VOCAB), draw(temperature=0.0, logprobs=3)).top] == [0, 1, 2]
