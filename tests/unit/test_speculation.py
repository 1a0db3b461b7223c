"""Drafting changes speed and nothing else: token ids and logprobs are bit-equal with it off and on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

import actors.drafter
import actors.mtp_pass
from actors.engine import Engine
from actors.messages import FINISH_ERROR, FINISH_LENGTH, FINISH_STOP
from actors.pace import LONGEST_REST_TOKENS, SHORTEST_REST_TOKENS, WINDOW_STEPS, Pace
from actors.scheduler import SchedulerLimits
from demo.corpus import make_encoder
from demo.network import Network, Packed
from demo.parameters import make_parameters
from demo.precision import Arithmetic
from demo.speculation import held_out_prompts
from model.cache import PAGE_TOKENS
from model.checkpoint import Checkpoint
from model.decoder import Decoder
from model.sampler import Draw, Drawn, sample
from model.sampling import Sampling
from router.exchange import Exchange
from tests.shoals import Generated, engine_of, generate, local_engine, local_parts, tcp_engine
from tests.unit.foreseeable import write_foreseeable
from tests.unit.test_demo_network import as_stored
from tests.unit.test_reference import relative

EMBEDDED = Path(__file__).parents[2] / "demo" / "checkpoint"
LENGTHS = (100, 3, 33, 64, 65, 31, 32, 1, 128, 129, 17, 96, 150, 48, 7, 2)  # index_topk is 32
NEW = 8
DEPTHS = (1, 2, 3)
GREEDY = Sampling(max_tokens=NEW, temperature=0.0, logprobs=0)
KINDS = {  # besides greedy
    "sampled": Sampling(max_tokens=NEW, seed=7, logprobs=2),
    "narrowed": Sampling(
        max_tokens=NEW, seed=8, temperature=1.3, top_p=0.9, top_k=20, min_p=0.02, logprobs=0
    ),
    "penalised": Sampling(
        max_tokens=NEW,
        temperature=0.0,
        presence_penalty=0.5,
        frequency_penalty=0.3,
        repetition_penalty=1.1,
        logprobs=0,
    ),
    "biased": Sampling(max_tokens=NEW, seed=3, logit_bias=((40, 2.0), (41, -100.0)), logprobs=0),
    "ends put off": Sampling(max_tokens=NEW, temperature=0.0, min_tokens=NEW - 3, logprobs=0),
    "without end": Sampling(max_tokens=NEW, temperature=0.0, ignore_eos=True, logprobs=0),
}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(16, 272, (n,), generator=generator).tolist() for n in LENGTHS]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("foreseeable")
    write_foreseeable(directory)
    return directory


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> tuple[Decoder, Exchange]:
    return local_parts(checkpoint)


@pytest.fixture(scope="module")
def drafting(checkpoint: Path) -> tuple[Decoder, Exchange]:
    """With the MTP layer, for any number of drafts."""
    return local_parts(checkpoint, draft_tokens=1)


@pytest.fixture(scope="module")
def engines(plain: tuple[Decoder, Exchange], drafting: tuple[Decoder, Exchange]) -> dict[int, Engine]:
    """By drafts."""
    return {0: engine_of(plain)} | {depth: engine_of(drafting, draft_tokens=depth) for depth in DEPTHS}


@pytest.fixture(scope="module")
def alone(engines: dict[int, Engine], prompts: list[list[int]]) -> list[Generated]:
    return [generate(engines[0], [prompt], GREEDY)[0] for prompt in prompts]


@pytest.fixture(scope="module")
def drawn(engines: dict[int, Engine], prompts: list[list[int]]) -> dict[str, list[Generated]]:
    """Two prompts' answers of each kind without drafts, all side by side."""
    told = [kind for kind in KINDS.values() for _ in range(2)]
    made = generate(engines[0], prompts[:2] * len(KINDS), told)
    return {kind: made[2 * i : 2 * i + 2] for i, kind in enumerate(KINDS)}


def longest(prompts: list[list[int]], alone: list[Generated]) -> tuple[list[int], list[int]]:
    """A prompt with a long answer, and that."""
    place = max(range(len(prompts)), key=lambda i: len(alone[i].token_ids))
    assert len(alone[place].token_ids) == NEW
    return prompts[place], alone[place].token_ids


def accepted(engine: Engine) -> int:
    return sum(engine.counters.accepted)


@pytest.mark.parametrize(("depth", "count"), [(1, 6), (2, 6), (3, 16)])
def test_up_to_sixteen_mixed_lengths_equal_each_alone_without_drafts(
    engines: dict[int, Engine], prompts: list[list[int]], alone: list[Generated], depth: int, count: int
) -> None:
    before = accepted(engines[depth])
    assert generate(engines[depth], prompts[:count], GREEDY) == alone[:count]
    assert accepted(engines[depth]) > before + count


@pytest.mark.parametrize("kind", KINDS)
def test_however_tokens_are_drawn_drafts_change_nothing(
    engines: dict[int, Engine], prompts: list[list[int]], drawn: dict[str, list[Generated]], kind: str
) -> None:
    before = accepted(engines[2])
    assert generate(engines[2], prompts[:2], KINDS[kind]) == drawn[kind]
    assert accepted(engines[2]) > before


def test_tokens_after_a_stop_are_not_said(
    engines: dict[int, Engine], prompts: list[list[int]], alone: list[Generated]
) -> None:
    prompt, said = longest(prompts, alone)
    places = range(2, 7)  # somewhere in a burst, whatever its length
    told = [Sampling(max_tokens=NEW, temperature=0.0, stop_token_ids=(said[place],)) for place in places]
    for place, ended in zip(places, generate(engines[3], [prompt] * len(told), told), strict=True):
        assert ended.finish == FINISH_STOP
        assert ended.token_ids == said[: said.index(said[place]) + 1]


@pytest.mark.parametrize("depth", [1, 3])
def test_the_last_token_comes_where_max_tokens_says(
    engines: dict[int, Engine], prompts: list[list[int]], alone: list[Generated], depth: int
) -> None:
    prompt, said = longest(prompts, alone)
    counts = range(1, 7)
    told = [Sampling(max_tokens=count, temperature=0.0, ignore_eos=True) for count in counts]
    for count, ended in zip(counts, generate(engines[depth], [prompt] * len(told), told), strict=True):
        assert ended.finish == FINISH_LENGTH
        assert ended.token_ids == said[:count]


def test_the_last_place_of_the_context_is_used_and_none_beyond(
    prompts: list[list[int]], plain: tuple[Decoder, Exchange], drafting: tuple[Decoder, Exchange]
) -> None:
    told = Sampling(max_tokens=500, temperature=0.0, ignore_eos=True, logprobs=0)
    prompt = prompts[12][:116]
    ended = [
        generate(engine_of(parts, num_pages=3, draft_tokens=depth), [prompt], told)[0]
        for parts, depth in ((plain, 0), (drafting, 3))
    ]
    assert ended[0] == ended[1]
    assert len(prompt) + len(ended[0].token_ids) == 128


@pytest.mark.parametrize("chunk_tokens", [16, 48])
def test_the_chunk_size_changes_nothing(
    drafting: tuple[Decoder, Exchange], prompts: list[list[int]], alone: list[Generated], chunk_tokens: int
) -> None:
    limits = SchedulerLimits(
        chunk_tokens=chunk_tokens, max_step_tokens=63 + chunk_tokens + 5
    )  # few drafts fit
    engine = engine_of(drafting, limits=limits, draft_tokens=2)
    assert generate(engine, prompts[:6], GREEDY) == alone[:6]
    assert accepted(engine) > 6


@pytest.mark.parametrize("num_actors", [1, 2])
def test_experts_over_sockets_hold_the_mtp_layer_too(
    checkpoint: Path, prompts: list[list[int]], alone: list[Generated], num_actors: int
) -> None:
    with tcp_engine(checkpoint, num_actors, draft_tokens=1) as engine:
        assert generate(engine, prompts[:4], GREEDY) == alone[:4]
        assert accepted(engine) > 4


def test_running_out_of_pages_changes_nothing(
    engines: dict[int, Engine], drafting: tuple[Decoder, Exchange], prompts: list[list[int]]
) -> None:
    told = Sampling(max_tokens=16, temperature=0.0, ignore_eos=True, logprobs=0)
    long = [prompt for prompt in prompts if len(prompt) > PAGE_TOKENS]
    few = [prompt[: PAGE_TOKENS - 12 + i] for i, prompt in enumerate(long[:4])]  # a second page on the way
    engine = engine_of(drafting, num_pages=6, draft_tokens=2)
    assert generate(engine, few, told) == generate(engines[0], few, told)
    assert engine.stats()["preemptions"] > 0


def test_a_sequence_resumed_elsewhere_goes_on_with_the_same_tokens(
    engines: dict[int, Engine], prompts: list[list[int]], alone: list[Generated]
) -> None:
    prompt, whole = longest(prompts, alone)
    assert engines[2].submit("test", "again", prompt, whole[:5], GREEDY) is None
    tokens: list[int] = []
    while engines[2].has_work:
        for event in engines[2].step().get("test", []):
            assert event.first == 5 + len(tokens)
            tokens += event.token_ids
    assert tokens == whole[5:]


def test_random_checkpoints_answer_as_before_and_soon_draft_no_more(tiny_v32: Path, tiny_v3: Path) -> None:
    """Nothing of theirs is accepted: what refused drafts left behind must not show."""
    ids = torch.randint(16, 272, (150,), generator=torch.Generator().manual_seed(5)).tolist()
    told = Sampling(max_tokens=WINDOW_STEPS + 10, temperature=0.0, ignore_eos=True, logprobs=0)
    for directory in (tiny_v32, tiny_v3):
        engine = local_engine(directory, draft_tokens=2)
        few = [ids, ids[:64]]
        assert generate(engine, few, told) == generate(local_engine(directory), few, told)
        assert WINDOW_STEPS * 2 <= engine.counters.drafted[0] < 0.7 * engine.counters.decode_tokens


def test_a_checkpoint_without_an_mtp_layer_is_served_without_drafts(tmp_path: Path, tiny_v3: Path) -> None:
    copy = Path(shutil.copytree(tiny_v3, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 0}))
    engine = local_engine(copy, draft_tokens=2)
    assert generate(engine, [[20] * 9], GREEDY) == generate(local_engine(tiny_v3), [[20] * 9], GREEDY)
    assert not any(engine.counters.drafted)


@contextmanager
def guesses(engine: Engine, right: list[Generated], rng: Random, wrong: int) -> Iterator[None]:
    """Instead of the MTP layer's drafts: right tokens and wrong ones, of every length and mixture."""
    drafter = engine._runner.drafter
    assert drafter is not None
    follow = drafter.follow

    def guess(advanced: Sequence[tuple[actors.drafter.LiveSequence, Tensor]]) -> None:
        follow(advanced)
        for sequence, _ in advanced:
            coming = right[int(sequence.request_id)].token_ids[sequence.num_emitted :]
            for place in range(len(sequence.drafts)):
                is_right = place < len(coming) and rng.random() < 0.7
                sequence.drafts[place] = coming[place] if is_right else wrong

    drafter.follow = guess  # type: ignore[method-assign]
    yield
    drafter.follow = follow  # type: ignore[method-assign]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_mixture_of_right_and_wrong_drafts_changes_nothing(tiny_v32: Path, dtype: torch.dtype) -> None:
    told = Sampling(max_tokens=12, seed=3, logprobs=1, ignore_eos=True)
    few = [[20 + i] * n for i, n in enumerate((1, 30, 62, 126))]
    expected = generate(local_engine(tiny_v32, dtype), few, told)
    engine = local_engine(tiny_v32, dtype, draft_tokens=3)
    with guesses(engine, expected, Random(4), wrong=33):
        assert generate(engine, few, told) == expected
    assert all(0 < a < d for a, d in zip(engine.counters.accepted, engine.counters.drafted, strict=True))


def test_a_wrong_draft_that_overflows_harms_nobody(tiny_v32: Path) -> None:
    told = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=0)
    few = [[20] * 10, [21] * 70]
    expected = generate(local_engine(tiny_v32), few, told)
    engine = local_engine(tiny_v32, draft_tokens=2)
    wrong = next(i for i in range(30, 272) if not any(i in one.token_ids for one in expected))
    engine._runner.decoder._head.embedding_VD[wrong] = float("nan")
    with guesses(engine, expected, Random(5), wrong):
        assert generate(engine, few, told) == expected
    assert engine.stats()["preemptions"] > 0
    assert generate(engine, [[wrong] * 5], told)[0].finish == FINISH_ERROR


def test_drafts_are_drawn_from_what_training_computes(
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    drafting: tuple[Decoder, Exchange],
    prompts: list[list[int]],
) -> None:
    """Through chunked prefill, accepted and refused drafts, and a rest: the logits of every first draft."""
    seen: list[tuple[int, Tensor]] = []

    def recording(logits: Tensor, draws: Sequence[Draw]) -> list[Drawn]:
        seen.extend((draw.position, row) for draw, row in zip(draws, logits, strict=True))
        return sample(logits, draws)

    monkeypatch.setattr(actors.mtp_pass, "sample", recording)
    engine = engine_of(drafting, limits=SchedulerLimits(chunk_tokens=32), draft_tokens=1)
    told = Sampling(max_tokens=45, seed=2, temperature=0.5, ignore_eos=True)
    engine.submit("test", "r", prompts[0], [], told)
    [sequence] = engine._scheduler.waiting
    while engine.has_work:
        engine.step()
        if not sequence.pace.is_resting:  # and it rests once, however few hold
            sequence.pace = Pace(resting_tokens=10 * (sequence.num_emitted in (20, 21)))
    assert 0 < accepted(engine) < engine.counters.drafted[0]
    positions = [position for position, _ in seen]
    assert max(later - sooner for sooner, later in pairwise(positions)) > 10  # the rest
    assert len(seen) > (told.max_tokens - 10) / 2 - 3  # no fewer if all had held
    config = Checkpoint.open(checkpoint).config
    parameters = as_stored(checkpoint, make_parameters(config, 0, torch.device("cpu")))
    network = Network(config, parameters, Arithmetic(precision="fp32"))
    tokens = torch.tensor([sequence.tokens])
    packed = Packed(tokens_BT=tokens, documents_BT=torch.ones_like(tokens))
    with torch.no_grad():
        trained = network.logits(network.forward(packed, attention="sparse").mtp_BTD)[0]
    for position, row in seen:  # the MTP layer at i reads token i + 1 and predicts token i + 2
        assert relative(row, trained[position - 2]) < 1e-5


def test_the_embedded_model_says_the_same_with_its_own_drafts() -> None:
    """FP8, trained, and its index_topk lies among the lengths of these questions."""
    made = sorted(held_out_prompts(make_encoder(EMBEDDED), 1, 16), key=len)
    questions = [made[0], *(prompt for prompt in made if len(prompt) > 70)][:4]
    parts = local_parts(EMBEDDED, draft_tokens=1)
    told = [GREEDY, KINDS["sampled"], KINDS["narrowed"], GREEDY]
    without, engine = engine_of(parts), engine_of(parts, draft_tokens=2)
    expected = [generate(without, [prompt], own)[0] for prompt, own in zip(questions, told, strict=True)]
    assert generate(engine, questions, told) == expected
    assert accepted(engine) > 0


def test_drafting_rests_when_it_gains_too_little_and_longer_each_time() -> None:
    pace = Pace()
    rests = []
    for _ in range(6):
        for _ in range(WINDOW_STEPS):
            assert not pace.is_resting
            pace.note(1, 0)
        rests.append(pace.resting_tokens)
        while pace.is_resting:
            pace.note(0, 0)
    assert rests[0] == SHORTEST_REST_TOKENS
    assert rests == sorted(rests)
    assert rests[-1] == LONGEST_REST_TOKENS
    for _ in range(1000):
        pace.note(1, 1)
        assert not pace.is_resting
