"""A run from its settings to its checkpoint, on a model that trains in seconds."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from demo import corpus, measure
from demo import train as train_module
from demo.corpus import MIXTURE, Batch, Source, draw, generator
from demo.export import write_checkpoint, write_record
from demo.measure import Examiner, changed_share
from demo.network import Network, Packed, Passed
from demo.parameters import BIAS, Parameters, make_parameters
from demo.precision import Arithmetic
from demo.runs import read_curves, read_record, read_run
from demo.settings import Settings
from demo.train import train
from demo.trainer import Trainer
from demo.vocabulary import vocabulary_text, write_vocabulary
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.names import mtp_tensors, required_tensors
from model.tiny import config_json
from tests.unit.tiny_demo import SHAPE

ROWS, LENGTH, VOCAB_SIZE = 2, 32, 64
RAW = config_json(SHAPE, vocab_size=VOCAB_SIZE, indexer=True, fp8=True, dtype=torch.bfloat16)


@pytest.fixture(scope="module", autouse=True)
def hasty() -> Iterator[None]:
    """Rows need not be full here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "GIVE_UP", 5)
        yield


def short(**changes: Any) -> Settings:
    """3 dense steps, 2 of warm-up, 2 sparse ones, unless changed."""
    plain = Settings(
        steps=7,
        rows=ROWS,
        length=LENGTH,
        precision="fp32",
        peak_lr=1e-2,
        rise_steps=2,
        dense_share=0.43,
        warmup_share=0.29,
        gamma=0.01,
    )
    return replace(plain, **changes)


def fresh(settings: Settings) -> Trainer:
    config = ModelConfig.from_dict(RAW)
    parameters = make_parameters(config, settings.seed, torch.device("cpu"))
    return Trainer(settings, Network(config, parameters, Arithmetic(precision="fp32")))


def batch(seed: int) -> Batch:
    """Two documents a row, the second short of the row's end."""
    tokens = np.random.default_rng(seed).integers(0, VOCAB_SIZE, (ROWS, LENGTH))
    documents = np.array([[1] * 15 + [2] * 14 + [0] * 3, [3] * 20 + [4] * 9 + [0] * 3])
    weights = (documents > 0).astype(np.float32)
    positions = np.broadcast_to(np.arange(LENGTH), tokens.shape).copy()
    return Batch(
        tokens_BT=tokens, documents_BT=documents, positions_BT=positions, weights_BT=weights, samples=()
    )


def snapshot(trainer: Trainer) -> Parameters:
    return {name: value.detach().clone() for name, value in trainer.network.parameters.items()}


def moved(before: Parameters, after: Parameters) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# Settings


def test_the_phases_follow_one_another_and_share_out_the_steps() -> None:
    settings = Settings(steps=1000)
    phases = [settings.phase(step) for step in range(1000)]
    assert phases == ["dense"] * 600 + ["warmup"] * 50 + ["sparse"] * 350
    assert {Settings(steps=50, sparse=False).phase(step) for step in range(50)} == {"dense"}


@pytest.mark.parametrize("sparse", (True, False))
def test_the_learning_rate_rises_then_falls_and_resumes_after_the_warmup_where_it_stopped(
    sparse: bool,
) -> None:
    settings = Settings(steps=1000, sparse=sparse, rise_steps=100)
    trained = [settings.lr(step) for step in range(1000) if settings.phase(step) != "warmup"]
    assert trained[:100] == sorted(trained[:100])
    assert trained[100] == max(trained) == pytest.approx(settings.peak_lr)
    assert trained[100:] == sorted(trained[100:], reverse=True)
    steps = [abs(one - other) for one, other in pairwise(trained[100:])]
    assert max(steps) < 0.002 * settings.peak_lr  # no jump anywhere, the gap included
    assert trained[-1] == pytest.approx(settings.peak_lr * settings.last_lr_share, rel=1e-2)


def test_the_indexers_learn_at_their_own_rate_in_the_warmup_and_follow_the_model_later() -> None:
    settings = Settings(steps=1000, index_lr=5e-3)
    assert {settings.index_lr_at(step) for step in range(600, 650)} == {5e-3}
    ratio = settings.index_lr_at(900) / settings.lr(900)
    assert ratio == pytest.approx(5e-3 / settings.peak_lr)


def test_the_biases_rest_at_the_end_and_in_an_unbalanced_run() -> None:
    settings = Settings(steps=1000)
    assert {settings.gamma_at(step) for step in range(950)} == {settings.gamma}
    assert {settings.gamma_at(step) for step in range(950, 1000)} == {0.0}
    assert Settings(steps=1000, balanced=False).gamma_at(0) == 0.0


# The trainer


def test_the_loss_of_one_batch_falls() -> None:
    trainer = fresh(short(steps=10, sparse=False))
    losses = []
    for _ in range(10):
        trainer.train(batch(1))
        losses.append(trainer.read())
    assert losses[-1].loss < 0.6 * losses[0].loss
    assert losses[-1].mtp_loss < 0.8 * losses[0].mtp_loss


def test_a_phase_trains_what_it_should_and_nothing_else() -> None:
    trainer = fresh(short())
    snapshots = [snapshot(trainer)]
    for step in range(7):
        trainer.train(batch(step))
        if step in (2, 4, 6):
            snapshots.append(snapshot(trainer))
    indexers = {name for name in snapshots[0] if ".indexer." in name}
    # An expert that a tiny batch never chose still decays, so every matrix moves.
    assert moved(snapshots[0], snapshots[1]) == set(snapshots[0]) - indexers
    assert moved(snapshots[1], snapshots[2]) == indexers
    assert moved(snapshots[2], snapshots[3]) == set(snapshots[0])


def test_an_unbalanced_run_leaves_the_biases_at_zero() -> None:
    trainer = fresh(short(balanced=False, sparse=False))
    trainer.train(batch(1))
    biases = [value for name, value in trainer.network.parameters.items() if name.endswith(BIAS)]
    assert biases
    assert not any(value.any() for value in biases)


def test_the_loss_counts_weighted_tokens_of_the_same_document() -> None:
    settings = short(sparse=False)
    trainer, made = fresh(settings), batch(3)
    made.weights_BT[:, 4] = 0.25
    packed = Packed(
        tokens_BT=torch.from_numpy(made.tokens_BT), documents_BT=torch.from_numpy(made.documents_BT)
    )
    with torch.no_grad():
        passed = trainer.network.forward(packed, attention="dense")
        expected = []
        for hidden, ahead in ((passed.hidden_BTD, 1), (passed.mtp_BTD, 2)):
            logs = torch.log_softmax(trainer.network.logits(hidden), -1)
            total = weight = 0.0
            for row in range(ROWS):
                for at in range(LENGTH - ahead):
                    if made.documents_BT[row, at] == made.documents_BT[row, at + ahead]:
                        w = float(made.weights_BT[row, at + ahead])
                        total -= w * float(logs[row, at, made.tokens_BT[row, at + ahead]])
                        weight += w
            expected.append(total / weight)
    trainer.train(made)
    means = trainer.read()
    assert [means.loss, means.mtp_loss] == pytest.approx(expected, rel=1e-5)


def test_the_answer_loss_is_that_of_answers_whatever_prompts_cost() -> None:
    settings = short(sparse=False)
    trainer, made = fresh(settings), batch(3)
    made.weights_BT[:] = 0.1
    made.weights_BT[:, 4] = 1.0
    packed = Packed(
        tokens_BT=torch.from_numpy(made.tokens_BT), documents_BT=torch.from_numpy(made.documents_BT)
    )
    with torch.no_grad():
        passed = trainer.network.forward(packed, attention="dense")
        logs = torch.log_softmax(trainer.network.logits(passed.hidden_BTD[:, 3]), -1)
    same = made.documents_BT[:, 3] == made.documents_BT[:, 4]
    assert same.any()
    nll = [-float(logs[row, made.tokens_BT[row, 4]]) for row in range(ROWS) if same[row]]
    trainer.train(made)
    means = trainer.read()
    assert means.answer_loss == pytest.approx(sum(nll) / len(nll), rel=1e-5)
    assert means.answer_loss != pytest.approx(means.loss, rel=1e-3)


def test_means_are_of_the_steps_since_the_last_reading() -> None:
    trainer = fresh(short(sparse=False))
    trainer.train(batch(1))
    first = trainer.read()
    trainer.train(batch(2))
    second = trainer.read()
    other = fresh(short(sparse=False))
    other.train(batch(1))
    other.train(batch(2))
    both = other.read()
    assert both.loss == pytest.approx((first.loss + second.loss) / 2)
    assert torch.equal(both.load_LE, first.load_LE + second.load_LE)
    assert both.load_LE.sum(-1).tolist() == [2 * ROWS * LENGTH * 8] * 2
    assert both.worst_load >= both.mean_load >= 1.0


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    unbroken = fresh(short())
    stops = (2, 4, 6)  # within each phase
    for step in range(7):
        if step in stops:
            save_file({name: value.clone() for name, value in unbroken.state().items()}, tmp_path / str(step))
        unbroken.train(batch(step))
    for stop in stops:
        resumed = fresh(short(seed=2))
        resumed.restore(load_file(tmp_path / str(stop)), stop)
        for step in range(stop, 7):
            resumed.train(batch(step))
        assert resumed.step == 7
        assert moved(snapshot(unbroken), snapshot(resumed)) == set()


def test_a_state_with_a_tensor_that_the_network_lacks_is_refused() -> None:
    with pytest.raises(KeyError, match="nowhere"):
        fresh(short()).restore({"parameters/nowhere": torch.zeros(1)}, 1)


# Measuring


def test_the_changed_share_by_hand() -> None:
    before = np.array([[[[1, 2, 3, 4], [5, 6, 7, 8]]]], dtype=np.uint8)
    after = np.array([[[[1, 2, 3, 9], [8, 7, 6, 5]]]], dtype=np.uint8)
    assert changed_share(before, after) == pytest.approx(1 / 8)
    assert changed_share(before, before) == 0.0


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary")
    texts = [vocabulary_text(draw(generator(0, "texts", number), "train")) for number in range(150)]
    write_vocabulary(path, texts, 400)
    return path


@pytest.fixture(scope="module")
def examiner(vocabulary: Path) -> Examiner:
    return Examiner(vocabulary, seed=1, length=1024, batches=1, rows=1)


Says = Callable[[Tensor], tuple[Tensor, Tensor]]


def reader(says: Says) -> Network:
    """A network that answers `says(tokens)`: at each place its next token and the MTP layer's one after."""
    choices = torch.arange(8)

    def forward(packed: Packed, *, attention: str, topk: int | None = None) -> Passed:
        hidden, mtp = (30.0 * F.one_hot(ids, 400).float() for ids in says(packed.tokens_BT))
        experts = choices.repeat(packed.tokens_BT.numel(), 1)
        return Passed(
            hidden_BTD=hidden,
            mtp_BTD=mtp,
            index_loss=torch.zeros(()),
            sequence_loss=torch.zeros(()),
            loads=[],
            choices=[experts, experts + 8],
        )

    return cast(
        Network,
        SimpleNamespace(
            parameters={"model.norm.weight": torch.zeros(1)},
            config=SimpleNamespace(num_experts=16),
            forward=forward,
            logits=lambda hidden: hidden,
        ),
    )


def test_a_network_that_knows_every_token_is_measured_as_perfect(examiner: Examiner) -> None:
    final = examiner.examine(reader(lambda ids: (ids.roll(-1, 1), ids.roll(-2, 1))), "sparse")
    assert set(final["validation_by_task"]) == set(MIXTURE)
    for task in final["validation_by_task"].values():
        assert task["loss"] < 1e-6
        assert (task["accuracy"], task["mtp_acceptance"]) == (1.0, 1.0)
    assert all(one["right"] == one["of"] > 0 for one in final["exact_match"].values())
    assert [point["topk"] for point in final["topk_sweep"]] == list(measure.TOPKS)
    assert all(point["needle_accuracy"] == 1.0 for point in final["topk_sweep"])
    assert all(point["perplexity"] == pytest.approx(1.0) for point in final["topk_sweep"])
    half = [1 / 8] * 8 + [0.0] * 8
    assert np.allclose(final["expert_load"], [half, half[::-1]])
    assert final["load_max_over_mean"] == pytest.approx([2.0, 2.0])


def test_one_wrong_token_spoils_an_answer_but_few_tokens(examiner: Examiner) -> None:
    def all_but_the_end(ids: Tensor) -> tuple[Tensor, Tensor]:
        following = ids.roll(-1, 1)
        return torch.where(following == 1, 2, following), ids.roll(-2, 1)  # 1 ends every answer

    final = examiner.examine(reader(all_but_the_end), "dense")
    assert all(one["right"] == 0 for one in final["exact_match"].values())
    # A needle counts by its value alone, and token 2 spells nothing.
    assert [point["needle_accuracy"] for point in final["topk_sweep"]] == [1.0]
    assert all(0.5 < task["accuracy"] < 1.0 for task in final["validation_by_task"].values())
    # The MTP layer named the right end, which the model did not: no draft is accepted there.
    assert all(
        task["mtp_acceptance"] == pytest.approx(task["accuracy"])
        for task in final["validation_by_task"].values()
    )


def test_a_needle_without_the_last_digit_of_its_value_is_not_found(examiner: Examiner) -> None:
    def stops_early(ids: Tensor) -> tuple[Tensor, Tensor]:
        following, second = ids.roll(-1, 1), ids.roll(-2, 1)
        after = ids.roll(-3, 1)  # value, full stop, end
        return torch.where((after == 1) & (second != 1), 1, following), second

    final = examiner.examine(reader(stops_early), "dense")
    assert [point["needle_accuracy"] for point in final["topk_sweep"]] == [0.0]


def test_a_draft_is_accepted_where_it_is_what_the_model_says_next_right_or_wrong(examiner: Examiner) -> None:
    def wrong_in_harmony(ids: Tensor) -> tuple[Tensor, Tensor]:
        return (ids.roll(-1, 1) + 1) % 400, (ids.roll(-2, 1) + 1) % 400

    def out_of_step(ids: Tensor) -> tuple[Tensor, Tensor]:
        counting = torch.arange(ids.shape[1]).expand_as(ids) % 7  # the draft says what the model says now
        return counting, counting

    one = examiner.examine(reader(wrong_in_harmony), "dense")
    assert all(task["accuracy"] == 0.0 for task in one["validation_by_task"].values())
    assert all(task["mtp_acceptance"] == 1.0 for task in one["validation_by_task"].values())
    other = examiner.examine(reader(out_of_step), "dense")
    assert all(task["mtp_acceptance"] == 0.0 for task in other["validation_by_task"].values())


def test_tasks_that_no_row_can_hold_are_left_out(vocabulary: Path) -> None:
    examiner = Examiner(vocabulary, seed=1, length=96, batches=1, rows=1)
    perfect = reader(lambda ids: (ids.roll(-1, 1), ids.roll(-2, 1)))
    final = examiner.examine(perfect, "dense")
    assert "about" in final["exact_match"]
    assert "tool" not in final["exact_match"]
    choices = examiner.glance(perfect, "dense").choices_LNTK
    assert choices.shape == (2, len(final["exact_match"]), 96, 8)


# Export


def test_the_same_parameters_write_the_same_checkpoint_and_its_hashes(tmp_path: Path) -> None:
    parameters = make_parameters(ModelConfig.from_dict(RAW), 1, torch.device("cpu"))
    for name in ("one", "two"):
        write_checkpoint(tmp_path / name, RAW, parameters)
        write_record(tmp_path / name, command="made by hand", seed=1)
    record = read_record(tmp_path / "one")
    assert record == read_record(tmp_path / "two")
    assert set(record.sha256) == {path.name for path in (tmp_path / "one").iterdir()} - {"training.json"}
    for name, digest in record.sha256.items():
        assert hashlib.sha256((tmp_path / "one" / name).read_bytes()).hexdigest() == digest
    assert record.parameters == sum(value.numel() for value in parameters.values())


# The command

FLAGS = (
    *("--name", "small", "--shape", "test", "--steps", "6", "--rows", "1", "--length", "64"),
    *("--precision", "fp32", "--workers", "0", "--exam-batches", "1", "--save-steps", "1"),
)


class Cut(Exception):  # noqa: N818 - what happens to a run
    """The machine was taken away."""


def run(*flags: str) -> Any:
    app = typer.Typer()
    app.command()(train)
    return CliRunner().invoke(app, [*FLAGS, *flags])


def places(directory: Path) -> tuple[str, ...]:
    names = ("results", "export", "state")
    return tuple(part for name in names for part in (f"--{name}", str(directory / name)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cut in its fifth step, a step after a save, and resumed by the same command."""
    directory = tmp_path_factory.mktemp("run")
    step_of = Trainer.train

    def cut(self: Trainer, batch: Batch) -> None:
        if self.step == 5:
            raise Cut
        step_of(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "LOG_STEPS", 2)
        patch.setattr(measure, "TOPKS", (8, 0))
        patch.setitem(train_module.VOCABULARY_SAMPLES, "test", 40)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Trainer, "train", cut)
            assert isinstance(run(*places(directory)).exception, Cut)
        saved = json.loads((directory / "state" / "state.json").read_text(encoding="utf-8"))
        assert saved["step"] == 4
        result = run(*places(directory))
    assert result.exit_code == 0, result.output
    return directory


def test_a_resumed_run_writes_all_curves_and_the_figures_that_the_report_reads(finished: Path) -> None:
    figures, curves = read_run(finished / "results", "small"), read_curves(finished / "results", "small")
    assert (figures.steps, figures.tokens, figures.device) == (6, 6 * 64, "CPU")
    assert figures.settings["precision"] == "fp32"
    assert curves["step"] == [2.0, 4.0, 6.0]
    assert curves["tokens"] == [128.0, 256.0, 384.0]
    assert figures.final.loss == curves["loss"][-1]
    assert 2.0 < figures.final.loss < 8.0
    assert [point.topk for point in figures.final.topk_sweep] == [8, 0]
    assert len(figures.final.expert_load) == 3
    assert all(sum(layer) == pytest.approx(1.0) for layer in figures.final.expert_load)
    assert [step for step, _ in figures.final.routing_change] == [4]  # the resumed run compares anew
    assert [one["step"] for one in figures.final.learned] == [2, 4, 6]
    assert all(0.0 <= one["about"] <= 1.0 for one in figures.final.learned)
    assert curves["seconds"] == sorted(curves["seconds"])
    with (finished / "results" / "run-small.csv").open(encoding="utf-8") as file:
        assert [row["phase"] for row in csv.DictReader(file)] == ["dense", "dense", "sparse"]


def test_the_exported_checkpoint_opens_and_its_record_is_right(finished: Path) -> None:
    checkpoint = Checkpoint.open(finished / "export")
    reader = checkpoint.reader()
    for name, shape in (required_tensors(checkpoint.config) | mtp_tensors(checkpoint.config)).items():
        value = reader.read(name, torch.float32)
        assert tuple(value.shape) == shape
        assert torch.isfinite(value).all()
    record = read_record(finished / "export")
    assert record.seed == 1
    assert "tokenizer.json" in record.sha256


def test_a_run_that_was_cut_and_resumed_trained_on_every_batch_once(finished: Path) -> None:
    settings = Settings(name="small", shape="test", steps=6, rows=1, length=64, precision="fp32")
    config = ModelConfig.from_file(finished / "export" / "config.json")
    parameters = make_parameters(config, 1, torch.device("cpu"))
    unbroken = Trainer(settings, Network(config, parameters, Arithmetic(precision="fp32")))
    source = Source(directory=finished / "export", seed=1, split="train", rows=1, length=64)
    for made in source.batches(0, 6, workers=0):
        unbroken.train(made)
    saved = load_file(finished / "state" / "step-6.safetensors")
    resumed = {name: saved[f"parameters/{name}"] for name in parameters}
    assert moved(snapshot(unbroken), resumed) == set()


def test_a_state_of_another_run_is_refused_before_anything_is_overwritten(finished: Path) -> None:
    csv_file = finished / "results" / "run-small.csv"
    before = csv_file.read_bytes()
    result = run(*places(finished), "--seed", "2")
    assert result.exit_code == 2
    assert "holds another run (seed differ)" in result.output.splitlines()[0]
    assert "Traceback" not in result.output
    assert csv_file.read_bytes() == before


@pytest.mark.parametrize(("flag", "value"), (("--precision", "fp7"), ("--shape", "huge")))
def test_an_unknown_choice_is_refused_with_the_known_ones(flag: str, value: str, tmp_path: Path) -> None:
    result = run(*places(tmp_path), flag, value)
    assert result.exit_code == 2
    assert value in result.output
    assert not (tmp_path / "results").exists()
