"""Models of noise: a checkpoint of true width, or a name that needs none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from actors.options import ActorOptions
from cluster.cli import app
from cluster.preflight import examine
from cluster.random_model import random_directory
from cluster.spec import ShoalSpec, SpecError
from ingress.tokenizer_file import write_byte_tokenizer
from ingress.tokens import Tokenizer
from kernels.fp8_rows import Fp8Weight
from model.checkpoint import Checkpoint
from model.fp8_load import load_fp8_model
from model.fp8_places import Room, tensors_of_model
from model.fp8_random import random_model
from model.memory import fp8_cache_bytes_per_token, fp8_weight_bytes
from model.names import mtp_tensors, required_tensors
from model.random_mark import read_mark, write_mark
from model.true_width import true_width, true_width_json, write_true_width
from tests.unit.test_fp8_model import parts

NARROW = {
    "vocab_size": 300,
    "hidden_size": 256,
    "intermediate_size": 384,
    "moe_intermediate_size": 128,
    "num_attention_heads": 2,
    "q_lora_rank": 256,
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path


def test_what_is_written_is_a_checkpoint_that_loads_without_nan(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    raw = true_width_json(layers=2, mtp=True, num_experts=16) | NARROW
    config = write_true_width(tmp_path, raw, seed=1, progress=lambda *one: told.append(one))
    checkpoint = Checkpoint.open(tmp_path)
    checkpoint.check(required_tensors(config) | mtp_tensors(config))
    assert told[-1][0] == told[-1][1] == sum(one.num_bytes for one in checkpoint.tensors.values())
    model = load_fp8_model(checkpoint.reader(), config, torch.device("cpu"), 2)
    made = random_model(config, torch.device("cpu"), 1)
    for found, wanted in zip(parts(model), parts(made), strict=True):
        if isinstance(found, torch.Tensor):
            assert isinstance(wanted, torch.Tensor) and torch.isfinite(found).all()
            assert float(found.float().std()) == pytest.approx(float(wanted.float().std()), rel=0.2)
        else:
            found.check("weight")
            assert torch.isfinite(found.values_NK.float()).all() and isinstance(wanted, Fp8Weight)
            for ours, theirs in ((found.values_NK, wanted.values_NK), (found.scale_NK, wanted.scale_NK)):
                assert float(ours.float().std()) == pytest.approx(float(theirs.float().std()), rel=0.5)


def test_a_disk_without_room_is_named_in_bytes_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)  # a disk that is full would take a disk
    told = CliRunner().invoke(app, ["make-tiny", str(tmp_path / "big"), "--true-width", "--layers", "4"])
    assert told.exit_code == 1
    assert "1,000,000,000 bytes free: the checkpoint takes 38,951," in " ".join(told.output.split())
    assert not list((tmp_path / "big").iterdir())


def test_a_name_is_a_model_without_weights_on_disk(home: Path) -> None:
    directory = random_directory("random:5", mtp=True)
    assert directory.is_relative_to(home) and sum(one.stat().st_size for one in directory.iterdir()) < 20e6
    served = [read_mark(directory, draft_tokens) for draft_tokens in (0, 2)]
    assert [mark and mark[0].num_mtp_layers for mark in served] == [0, 1]
    assert served[0] == (true_width(moe_layers=4), 0)
    assert len(json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]) == 129280
    assert read_mark(home, 0) is None


def test_an_actor_loads_what_is_there_and_makes_what_is_not(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="needs Triton")
    from actors.build_gpu import load_or_make

    raw = true_width_json(layers=2, mtp=True, num_experts=16) | NARROW
    write_mark(tmp_path / "noise", raw, seed=3)
    write_true_width(tmp_path / "files", raw, seed=3)
    made = []
    for name in ("noise", "files"):
        for draft_tokens in (0, 1):
            options = ActorOptions(
                actor_id="attention-0",
                incarnation=1,
                directory=str(tmp_path / name),
                dtype="fp8",
                host="",
                token=b"",
                draft_tokens=draft_tokens,
                device="cuda",
            )
            model, config, read = load_or_make(options, torch.device("cpu"), lambda _: None)
            assert (model.mtp is None, config.num_mtp_layers) == (not draft_tokens, draft_tokens)
            assert (read.bytes_read > 0) == (name == "files")
        made.append(model.head_VD)
    assert torch.equal(*made), "one seed, one CPU: the same noise"


@pytest.mark.parametrize("model", ["random:", "random:0", "random:62", "random:five", "random:-1"])
def test_a_name_says_how_many_layers(home: Path, model: str) -> None:
    with pytest.raises(SpecError, match="random:LAYERS with 1 to 61"):
        random_directory(model, mtp=False)


def test_tokens_that_no_text_becomes_read_as_their_numbers(tmp_path: Path) -> None:
    assert write_byte_tokenizer(tmp_path, 1000) == 1000
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.decode([999, 272]) == " 999 272"
    assert max(tokenizer.encode_text(" 999 272")) < 272


def test_noise_needs_a_gpu(home: Path) -> None:
    with pytest.raises(SpecError, match=r"made on a GPU \(--device cuda\).*make-tiny"):
        ShoalSpec.from_sources(None, {"model": "random:5"})
    if not torch.cuda.is_available():
        with pytest.raises(SpecError, match="no GPU is seen here"):
            examine(ShoalSpec.from_sources(None, {"model": "random:5", "device": "cuda"}))


def test_memory_is_what_room_for_the_model_takes() -> None:
    config = true_width(moe_layers=1, num_experts=16, mtp=True)
    room = Room(config, torch.device("meta"))
    room.model()
    taken = sum(
        place.values.nbytes + (0 if place.scale is None else place.scale.nbytes) for place in room.places
    )
    assert {place.name for place in room.places} == tensors_of_model(config).keys()
    assert fp8_weight_bytes(config) == pytest.approx(taken, rel=1e-4)
    assert fp8_cache_bytes_per_token(true_width(moe_layers=60)) == 61 * (656 + 132)
