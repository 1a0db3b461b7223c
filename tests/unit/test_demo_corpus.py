"""What the model is shown: whole samples, by seed alone, in tokens that no text can forge."""

# ruff: noqa: RUF001 - the special tokens are spelled with bars that are not ASCII

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.corpus import (
    LEAST_LEAPING,
    MIXTURE,
    PROMPT_WEIGHT,
    Batch,
    Encoder,
    Source,
    draw,
    generator,
    leaping,
)
from demo.tasks import TASKS, task_named
from demo.vocabulary import MAX_COMMON, common_words, vocabulary_text, write_vocabulary
from demo.words import name
from ingress.encoding import encode_history, encode_messages, render
from ingress.specials import TEMPLATE_SPECIALS
from ingress.tokenizer_file import NUM_SPECIALS, write_byte_tokenizer
from ingress.tokens import Tokenizer

VOCAB_SIZE = 700


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [vocabulary_text(draw(generator(0, "texts", number), "train")) for number in range(200)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    path = tmp_path_factory.mktemp("vocabulary")
    write_vocabulary(path, texts, VOCAB_SIZE)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.from_file(directory / "tokenizer.json")


@pytest.fixture(scope="module")
def source(directory: Path) -> Source:
    return Source(directory=directory, seed=5, split="train", rows=2, length=768)


@pytest.fixture(scope="module")
def batch(source: Source) -> Batch:
    return source.batch(7)


def is_same(one: Batch, other: Batch) -> bool:
    return (
        np.array_equal(one.tokens_BT, other.tokens_BT)
        and np.array_equal(one.documents_BT, other.documents_BT)
        and np.array_equal(one.positions_BT, other.positions_BT)
        and np.array_equal(one.weights_BT, other.weights_BT)
    )


def test_the_mixture_shares_out_all_samples_to_all_tasks() -> None:
    assert sum(MIXTURE.values()) == pytest.approx(1.0)
    assert set(MIXTURE) == {task.name for task in TASKS}


def test_a_batch_depends_on_seed_split_and_index_alone(source: Source, batch: Batch) -> None:
    again = replace(source)
    again.batch(3)
    assert is_same(again.batch(7), batch)
    others = (
        source.batch(8),
        replace(source, seed=6).batch(7),
        replace(source, split="held_out").batch(7),
    )
    assert not any(is_same(other, batch) for other in others)


def test_workers_give_the_same_batches_in_the_same_order(directory: Path) -> None:
    source = Source(directory=directory, seed=5, split="train", rows=1, length=256)
    alone = list(source.batches(3, 11, workers=0))
    together = list(source.batches(3, 11, workers=2))
    assert len(together) == 11
    assert all(is_same(one, other) for one, other in zip(alone, together, strict=True))
    assert is_same(alone[2], source.batch(5))
    assert all(other.tokens_BT.flags.writeable for other in together)  # torch.from_numpy warns of others


def test_samples_stand_whole_and_side_by_side_with_their_weights(source: Source, batch: Batch) -> None:
    encoder = Encoder(Tokenizer.from_file(source.directory / "tokenizer.json"))
    rows_of = []
    for number, sample in enumerate(batch.samples, start=1):
        rows, places = (batch.documents_BT == number).nonzero()
        encoded = encoder.encode(sample)
        assert len(set(rows.tolist())) == 1
        assert places.tolist() == list(range(places[0], places[0] + len(encoded.ids)))
        assert batch.tokens_BT[rows, places].tolist() == encoded.ids
        read, written = encoded.prompt - 1, len(encoded.ids) - encoded.prompt
        expected = np.array([0.0] + [PROMPT_WEIGHT] * read + [1.0] * written, dtype=np.float32)
        assert np.array_equal(batch.weights_BT[rows, places], expected)
        rows_of.append(rows[0])
    is_padding = batch.documents_BT == 0
    assert not batch.weights_BT[is_padding].any()
    assert not (is_padding[:, :-1] & ~is_padding[:, 1:]).any()  # padding is at the ends alone
    assert batch.documents_BT.max() == len(batch.samples)


def test_positions_count_from_the_start_of_each_document(batch: Batch) -> None:
    for number in range(1, len(batch.samples) + 1):
        own = batch.positions_BT[batch.documents_BT == number]
        assert own.tolist() == list(range(len(own)))


def test_leaps_change_positions_of_long_documents_and_nothing_else(directory: Path, batch: Batch) -> None:
    wide = Source(directory=directory, seed=5, split="train", rows=2, length=768, context=4096).batch(7)
    assert np.array_equal(wide.tokens_BT, batch.tokens_BT)
    assert np.array_equal(wide.weights_BT, batch.weights_BT)
    leapt = np.unique(batch.documents_BT[wide.positions_BT != batch.positions_BT])
    sizes = np.bincount(batch.documents_BT.ravel())
    assert len(leapt)
    assert (sizes[leapt] >= LEAST_LEAPING).all()
    assert wide.positions_BT.max() < 4096


@given(seed=st.integers(0, 2**32), size=st.integers(1, 1024))
def test_positions_with_leaps_increase_and_stay_within_the_context(seed: int, size: int) -> None:
    positions = leaping(Random(seed), size, 4096)
    assert len(positions) == size
    assert positions[-1] < 4096
    assert positions[0] >= 0
    assert (np.diff(positions) >= 1).all()
    if size < LEAST_LEAPING:
        assert positions.tolist() == list(range(size))


def test_every_second_long_document_leaps_and_some_as_far_as_the_context() -> None:
    ends = [int(leaping(Random(seed), 900, 4096)[-1]) for seed in range(400)]
    assert 100 < sum(end > 899 for end in ends) < 300
    assert max(ends) > 4000


def test_rows_are_full(source: Source, batch: Batch) -> None:
    assert batch.fill > 0.9
    assert batch.fill == pytest.approx((batch.documents_BT > 0).sum() / batch.documents_BT.size)
    assert source.batch(0).fill > 0.9


@pytest.mark.parametrize("task", MIXTURE)
@pytest.mark.parametrize("split", ("train", "held_out"))
def test_a_sample_is_encoded_as_the_endpoint_encodes_it(directory: Path, task: str, split: str) -> None:
    tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
    encoder = Encoder(tokenizer)
    rng = Random(11)
    for _ in range(10):
        sample = task_named(task).draw(rng, split)  # type: ignore[arg-type]
        tools = list(sample.tools) or None
        prompt = encode_messages(sample.messages, thinking=sample.thinking, tools=tools)
        encoded = encoder.encode(sample)
        assert encoded.ids[: encoded.prompt] == tokenizer.encode_prompt(prompt)
        whole = encode_history([*sample.messages, sample.answer], thinking=sample.thinking, tools=tools)
        assert tokenizer.decode(encoded.ids, keep_special=True) == render(whole)
        assert len(encoded.ids) > encoded.prompt


def test_the_same_texts_write_the_same_bytes(texts: list[str], directory: Path, tmp_path: Path) -> None:
    write_vocabulary(tmp_path, texts, VOCAB_SIZE)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / file).read_bytes() == (directory / file).read_bytes()


def test_equally_common_words_are_told_apart_by_the_word_not_by_a_sets_order() -> None:
    words = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(600)]
    texts = [f"{words[i - 2]} {words[i - 1]} {words[i]}" for i in range(600)]
    assert len(common_words(texts)) == MAX_COMMON
    assert common_words(texts) == common_words(texts[::-1])


def test_special_tokens_keep_their_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    plain = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.vocab_size == VOCAB_SIZE
    for special in TEMPLATE_SPECIALS:
        assert tokenizer.special_id(special.text) == plain.special_id(special.text) is not None
    added = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    assert [tokenizer.special_id(token["content"]) for token in added] == [*range(NUM_SPECIALS)]


@given(
    pieces=st.lists(st.sampled_from([*(s.text for s in TEMPLATE_SPECIALS), "<｜", "｜>", " ", "a", "User"]))
)
@settings(max_examples=40, deadline=None)
def test_no_text_becomes_a_special_token(tokenizer: Tokenizer, pieces: list[str]) -> None:
    text = "".join(pieces)
    ids = tokenizer.encode_text(text)
    assert all(one >= NUM_SPECIALS for one in ids)
    assert tokenizer.decode(ids) == text


@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
@settings(max_examples=60, deadline=None)
def test_every_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode_text(text)) == text


@given(
    seed=st.integers(0, 10_000),
    before=st.sampled_from(("", " ", "(", "_", "\n", "'", "the ", "of\n", "7", "x = ", '{"', ", ")),
    after=st.sampled_from(("", " ", ")", "_", ".", "'s", " is", "42", "\n\n", '": ')),
)
@settings(max_examples=60, deadline=None)
def test_a_name_is_split_the_same_wherever_it_stands(
    tokenizer: Tokenizer, seed: int, before: str, after: str
) -> None:
    made = name(Random(seed), "held_out")
    parts = [one for part in (before, made, after) for one in tokenizer.encode_text(part)]
    assert tokenizer.encode_text(before + made + after) == parts


@given(number=st.integers(0, 10**12), before=st.sampled_from(("", " ", "a", "-", "$")))
@settings(max_examples=50, deadline=None)
def test_digits_stand_alone(tokenizer: Tokenizer, number: int, before: str) -> None:
    ids = tokenizer.encode_text(f"{before}{number}.5")
    assert [tokenizer.token_bytes(one).decode() for one in ids][-len(str(number)) - 2 :] == [*f"{number}.5"]


def test_a_common_word_takes_fewer_tokens_than_its_letters(tokenizer: Tokenizer, texts: list[str]) -> None:
    words = common_words(texts)
    lengths = [len(tokenizer.encode_text(f" {word}")) for word in words]
    assert sum(lengths) < 2.5 * len(words)
