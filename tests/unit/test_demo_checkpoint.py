"""The embedded checkpoint is whole, small, ordinary, and what `serve` serves by default."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from actors.scheduler import SchedulerLimits
from cluster.embedded import check_embedded, embedded_directory
from cluster.preflight import Preflight, examine
from cluster.spec import ShoalSpec
from demo import sql
from ingress.encoding import encode_messages
from ingress.specials import ASSISTANT, BOS, END_THINK, EOS, THINK, USER, Segment
from ingress.tokens import Tokenizer
from kernels.fp8 import dequantize_blocks
from model.checkpoint import Checkpoint, CheckpointError
from model.decoder import Decoder
from model.sampling import Sampling
from model.write import SCALE
from router.exchange import Exchange
from tests.shoals import engine_of, generate, local_parts
from tests.unit.test_reference import RELATIVE, logits_of_every_token, reference, relative

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "demo" / "checkpoint"
MAX_BYTES = 12_000_000
NEW = 64
TEXTS = (
    "What are you?",
    "17 + 4805 = 4822; 3 * -9",
    "SELECT a.name, COUNT(*) FROM a JOIN b ON a.id = b.a_id WHERE b.n >= 10 GROUP BY a.name;",
    '{"city": "Oslo", "days": [1, 2]}',
    "  two  spaces,\ttabs\r\n\n\nand lines ",
    "na\u00efve \u03c0 \u4e2d\u6587 \U0001f600 e\u0301 \u00a0\x00\x7f",
    "",
)


def recorded() -> dict[str, str]:
    hashes: dict[str, str] = json.loads((CHECKPOINT / "training.json").read_text())["sha256"]
    return hashes


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))


def flip(file: Path) -> None:
    """One bit in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_the_record_names_every_file_with_its_hash() -> None:
    files = {path.name: path.read_bytes() for path in CHECKPOINT.iterdir() if path.name != "training.json"}
    assert recorded() == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def test_the_checkpoint_is_at_most_12_mb() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= MAX_BYTES


def test_a_wheel_takes_every_file_along() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "demo" in setuptools["packages"]
    taken = {path for pattern in setuptools["package-data"]["demo"] for path in (ROOT / "demo").glob(pattern)}
    assert taken >= set(CHECKPOINT.iterdir())


@pytest.fixture(scope="module")
def served() -> Preflight:
    return examine(ShoalSpec())


def test_serve_without_a_model_serves_it(served: Preflight) -> None:
    assert served.directory == embedded_directory() == CHECKPOINT
    assert served.model_name == "shoal-demo"


def test_its_longest_question_and_answer_fit_by_default(served: Preflight) -> None:
    assert served.context_tokens >= 2300 + 512


@pytest.mark.parametrize("name", sorted(recorded()))
def test_a_damaged_file_is_refused_by_name_in_one_line(copy: Path, name: str) -> None:
    check_embedded(copy)
    flip(copy / name)
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        check_embedded(copy)
    assert str(caught.value).startswith(f"{copy / name}: ")
    assert len(str(caught.value).splitlines()) == 1


def unlist(directory: Path) -> None:
    (directory / "training.json").write_text('{"sha256": {}}')


def cut(directory: Path) -> None:
    file = directory / "training.json"
    file.write_bytes(file.read_bytes()[:-20])


def lose(directory: Path) -> None:
    (directory / "training.json").unlink()


def lead_out(directory: Path) -> None:
    (directory.parent / "elsewhere").write_text("{}")
    (directory / "training.json").write_text('{"sha256": {"../elsewhere": "00"}}')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (unlist, "training.json: is damaged"),
        (cut, "training.json: is not the JSON"),
        (lose, "training.json: is missing"),
        (lead_out, "elsewhere"),
    ],
)
def test_a_damaged_record_is_refused_in_one_line(
    copy: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(copy)
    with pytest.raises(CheckpointError, match=words) as caught:
        check_embedded(copy)
    assert len(str(caught.value).splitlines()) == 1


def test_a_lost_file_is_refused_by_name(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is missing"):
        check_embedded(copy)


def test_the_command_finds_its_own_checkpoint_and_refuses_it_damaged(tmp_path: Path) -> None:
    """The packages as an installation lays them out, away from the checkout."""
    for package in ("cluster", "ingress", "actors", "model", "router", "kernels"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CHECKPOINT, tmp_path / "demo" / "checkpoint")
    flip(tmp_path / "demo" / "checkpoint" / "config.json")
    command = [sys.executable, "-m", "cluster.cli", "serve", "--port", "18098"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"{tmp_path / 'demo' / 'checkpoint' / 'config.json'}: is damaged" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def prompt_ids() -> list[int]:
    """A question that it was made for, longer than index_topk; to a random one no answer is clear."""
    tokenizer = Tokenizer.from_file(CHECKPOINT / "tokenizer.json")
    messages = sql.TASK.draw(Random(4), "held_out").messages
    return tokenizer.encode_prompt(encode_messages(messages, thinking=False))


def test_transformers_reads_the_same_tokens(transformers: ModuleType) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    ours = Tokenizer.from_file(CHECKPOINT / "tokenizer.json")
    for text in TEXTS:
        ids = ours.encode_prompt([text])
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids) == text
    specials: list[Segment] = [BOS, USER, "Hi", ASSISTANT, THINK, END_THINK, EOS]
    text = "".join(one if isinstance(one, str) else one.text for one in specials)
    assert ours.encode_prompt(specials) == theirs.encode(text, add_special_tokens=False)
    assert theirs.eos_token == EOS.text


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint de-quantised to fp32: transformers has no FP8 products on a CPU."""
    directory = tmp_path_factory.mktemp("wide")
    checkpoint = Checkpoint.open(CHECKPOINT)
    reader, block = checkpoint.reader(), checkpoint.config.fp8_block
    assert block is not None
    tensors = {}
    for name in checkpoint.tensors:
        if not name.endswith(SCALE):
            value = reader.read_raw(name)
            if name + SCALE in checkpoint.tensors:
                value = dequantize_blocks(value, reader.read_raw(name + SCALE), block, torch.float32)
            tensors[name] = value.float()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((CHECKPOINT / "config.json").read_text())
    del config["quantization_config"]
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def theirs(transformers: ModuleType, wide: Path) -> Any:
    model = reference(transformers, wide)
    assert type(model).__name__ == "DeepseekV32ForCausalLM"
    return model


@pytest.fixture(scope="module")
def ours() -> tuple[Decoder, Exchange]:
    return local_parts(CHECKPOINT)


def test_logits_equal_transformers(theirs: Any, ours: tuple[Decoder, Exchange]) -> None:
    ids = prompt_ids()
    assert len(ids) > 64  # index_topk
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0]
    for cuts in ([len(ids)], [64, len(ids)], [*range(len(ids) - 4, len(ids) + 1)]):
        assert relative(logits_of_every_token(ours, ids, cuts), expected) < RELATIVE


def test_greedy_tokens_equal_transformers_for_64_steps(theirs: Any, ours: tuple[Decoder, Exchange]) -> None:
    ids = prompt_ids()
    with torch.no_grad():
        output = theirs.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            pad_token_id=2,
        )
    greedy = Sampling(max_tokens=NEW, min_tokens=NEW, temperature=0.0)
    engine = engine_of(ours, limits=SchedulerLimits(chunk_tokens=64))
    assert generate(engine, [ids], greedy)[0].token_ids == output[0, len(ids) :].tolist()
