"""What can be known to fail is known before any process starts, in one line with its remedy."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cluster.cli import app
from cluster.preflight import examine, needed_bytes
from cluster.random_model import write_checkpoint
from cluster.spec import ShoalSpec


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    write_checkpoint(directory, "test", seed=1)
    return directory


@pytest.fixture
def checkpoint(whole: Path, tmp_path: Path) -> Path:
    """To be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def shard_of(directory: Path, tensor: str) -> Path:
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    return directory / str(index["weight_map"][tensor])


def truncate(directory: Path) -> None:
    shard = shard_of(directory, "lm_head.weight")
    shard.write_bytes(shard.read_bytes()[:-1000])


def remove(directory: Path) -> None:
    shard_of(directory, "lm_head.weight").unlink()


def retype(directory: Path) -> None:
    shard = shard_of(directory, "lm_head.weight")
    tensors = load_file(shard)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int32)
    save_file(tensors, shard)


def reshape(directory: Path) -> None:
    shard = shard_of(directory, "lm_head.weight")
    tensors = load_file(shard)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-16].contiguous()
    save_file(tensors, shard)


def untokenise(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, [".safetensors"]),
        (remove, [".safetensors", "tensor model.", "missing"]),
        (retype, [".safetensors", "lm_head.weight", "I32"]),
        (reshape, [".safetensors", "lm_head.weight"]),
        (untokenise, ["tokenizer.json"]),
    ],
)
def test_a_damaged_checkpoint_is_named_in_one_line(
    checkpoint: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    damage(checkpoint)
    with pytest.raises(ValueError) as caught:
        examine(ShoalSpec(model=str(checkpoint)))
    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value)


def test_too_little_memory_is_said_with_the_way_out(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"not enough memory.* are free; use fewer actors"):
        examine(ShoalSpec(model=str(checkpoint), cache_tokens=1 << 40))


def test_more_copies_need_more_memory(checkpoint: Path) -> None:
    config = examine(ShoalSpec(model=str(checkpoint))).config
    one, two = (needed_bytes(ShoalSpec(experts=2, replicas_per_expert=r), config) for r in (1, 2))
    local = needed_bytes(ShoalSpec(experts=0, attention=1), config)
    assert local < one < two


def test_fewer_bytes_per_weight_need_less_memory(checkpoint: Path) -> None:
    config = examine(ShoalSpec(model=str(checkpoint))).config
    wide = needed_bytes(ShoalSpec(dtype="float32"), config)
    assert needed_bytes(ShoalSpec(dtype="bfloat16"), config) < wide
    assert needed_bytes(ShoalSpec(dtype="int8"), config) < wide


def test_a_missing_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere': no such directory"):
        examine(ShoalSpec(model=str(tmp_path / "nowhere")))


def test_a_context_beyond_the_model_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"context_tokens is 100000: the model has 4096"):
        examine(ShoalSpec(model=str(checkpoint), context_tokens=100_000))


def forget_mtp(directory: Path) -> None:
    """The files of one who left the MTP layer out, whose config.json still speaks of it."""
    layer = f"model.layers.{examine(ShoalSpec(model=str(directory))).config.num_layers}."
    file = directory / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    kept = {name: shard for name, shard in index["weight_map"].items() if not name.startswith(layer)}
    assert len(kept) < len(index["weight_map"])
    file.write_text(json.dumps({**index, "weight_map": kept}))


def test_one_token_is_drafted_where_there_is_an_mtp_layer_and_none_where_not(checkpoint: Path) -> None:
    def drafts(draft_tokens: int | None) -> tuple[int, int]:
        checked = examine(ShoalSpec(model=str(checkpoint), draft_tokens=draft_tokens))
        return checked.draft_tokens, checked.config.num_mtp_layers

    assert [drafts(None), drafts(0), drafts(3)] == [(1, 1), (0, 0), (3, 1)]
    forget_mtp(checkpoint)
    assert [drafts(None), drafts(0)] == [(0, 0), (0, 0)]
    with pytest.raises(ValueError, match="draft_tokens is 2: the model has no MTP layer; set it to 0"):
        drafts(2)


def test_an_mtp_layer_that_is_not_loaded_needs_no_memory(checkpoint: Path) -> None:
    def needed(draft_tokens: int) -> int:
        return examine(ShoalSpec(model=str(checkpoint), draft_tokens=draft_tokens)).needed_bytes

    assert needed(0) < needed(1) == needed(2)


@pytest.fixture
def serve() -> Iterator[Callable[..., Result]]:
    """The command in this process, whose signal handlers stay its own."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield lambda *arguments: CliRunner().invoke(app, ["serve", *arguments])
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_port_that_cannot_be_had_is_said_in_one_line_with_a_code(
    checkpoint: Path, serve: Callable[..., Result]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for asked, words in ((port, f"port {port}"), ("0", "port is 0")):
            done = serve(str(checkpoint), "--port", asked)
            assert done.exit_code == 1
            assert words in done.stderr
            assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("field", "host"),
    [("admin_host", "203.0.113.7"), ("data_host", "203.0.113.7")],
)
def test_a_host_that_is_not_here_is_said_before_anything_starts(
    checkpoint: Path, serve: Callable[..., Result], field: str, host: str
) -> None:
    config = checkpoint / "shoal.yaml"
    config.write_text(f"{field}: {host}\n")
    done = serve(str(checkpoint), "--port", "18098", "--config", str(config))
    assert done.exit_code == 1
    assert f"{field} is '{host}': nobody can listen there" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


ITS_IMPORTS = """
import sys
from cluster.cli import app
try:
    app()
finally:
    print(sorted({"ray", "torch"} & set(sys.modules)))
"""


def test_a_bad_checkpoint_is_said_before_ray_and_torch_are_imported(checkpoint: Path) -> None:
    truncate(checkpoint)
    command = [sys.executable, "-c", ITS_IMPORTS, "serve", str(checkpoint), "--port", "18099"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert ".safetensors" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stdout == "[]\n"
