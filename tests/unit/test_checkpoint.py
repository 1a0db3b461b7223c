"""Checkpoints: hostile and damaged files are refused by name; readers read what they own and nothing else."""

import json
import math
import os
import shutil
import struct
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from kernels.fp8 import dequantize_blocks_reference
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.memory import weight_values
from model.names import (
    attention_tensors,
    expert_tensors,
    is_fp8_linear,
    mtp_attention_tensors,
    mtp_copies,
    mtp_tensors,
    num_values,
    required_tensors,
)
from model.reader import Progress
from model.shards import MAX_HEADER_BYTES, CheckpointError, read_header
from model.tiny import write_tiny
from tests.unit.test_config import RELEASED

BLOCK = (128, 128)
QUERY = "model.layers.0.self_attn.q_a_proj.weight"
NORM = "model.norm.weight"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def wide_source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wide")
    write_tiny(directory, preset="test", shard_bytes=300_000)
    return directory


@pytest.fixture(scope="module")
def fp8_source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fp8")
    write_tiny(directory, preset="test", fp8=True, shard_bytes=100_000)
    return directory


@pytest.fixture
def wide(wide_source, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(wide_source, tmp_path / "wide"))


@pytest.fixture
def fp8(fp8_source, tmp_path):
    return Path(shutil.copytree(fp8_source, tmp_path / "fp8"))


def shard_of(directory, name):
    return directory / json.loads((directory / INDEX).read_text())["weight_map"][name]


def rewrite(directory, name, change):
    """Replace one tensor of a shard by `change(tensor)`, or drop it when that is None."""
    shard = shard_of(directory, name)
    tensors = load_file(shard)
    changed = change(tensors.pop(name))
    save_file(tensors if changed is None else {**tensors, name: changed}, shard)


def change_index(directory, change):
    raw = json.loads((directory / INDEX).read_text())
    change(raw["weight_map"])
    (directory / INDEX).write_text(json.dumps(raw))


def refusal(directory):
    """The one line with which opening and checking `directory` ends."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint = Checkpoint.open(directory)
        checkpoint.check(required_tensors(checkpoint.config))
    line = str(caught.value)
    assert line.isprintable()
    return line


# --- names


def stored_count(names):
    return len(names) + sum(map(is_fp8_linear, names))


def test_names_count_the_released_checkpoint():
    config = ModelConfig.from_dict(RELEASED)
    assert stored_count(required_tensors(config)) == 90_854
    assert stored_count(mtp_tensors(config)) + len(mtp_copies(config)) == 1_571
    assert num_values(required_tensors(config).values()) / 1e9 == pytest.approx(671.88, abs=0.01)
    assert num_values(mtp_tensors(config).values()) / 1e9 == pytest.approx(11.62, abs=0.01)


def test_attention_and_experts_together_are_the_whole_model():
    config = ModelConfig.from_dict(RELEASED)
    names = set(attention_tensors(config))
    for layer in range(3, 61):
        for expert in range(256):
            names |= set(expert_tensors(config, layer, expert))
    assert names == set(required_tensors(config))
    assert set(mtp_attention_tensors(config)) < set(mtp_tensors(config))


def test_without_a_query_latent_there_is_one_query_projection():
    names = attention_tensors(
        ModelConfig.from_dict({**RELEASED, "model_type": "deepseek_v3", "q_lora_rank": None})
    )
    assert names["model.layers.0.self_attn.q_proj.weight"] == (128 * 192, 7168)
    assert not [name for name in names if "q_a" in name or "q_b" in name or "indexer" in name]


def test_estimated_ram_is_that_of_the_tensors():
    config = ModelConfig.from_dict(RELEASED)
    attention, experts = weight_values(config)
    needed = required_tensors(config) | mtp_tensors(config)
    assert attention + experts == num_values(needed.values())
    assert experts == 59 * 256 * 3 * 2048 * 7168


# --- whole directories


def test_a_good_checkpoint_opens_with_everything_in_place(wide_source):
    checkpoint = Checkpoint.open(wide_source)
    checkpoint.check(required_tensors(checkpoint.config) | mtp_tensors(checkpoint.config))
    assert checkpoint.holds(mtp_copies(checkpoint.config))
    assert not checkpoint.holds(["model.layers.99.input_layernorm.weight"])


def test_a_single_file_without_index_opens(wide):
    tensors = {}
    for shard in sorted(wide.glob("model-*.safetensors")):
        tensors |= load_file(shard)
        shard.unlink()
    (wide / INDEX).unlink()
    save_file(tensors, wide / "model.safetensors")
    checkpoint = Checkpoint.open(wide)
    checkpoint.check(required_tensors(checkpoint.config))
    assert torch.equal(checkpoint.reader().read(NORM, torch.bfloat16), tensors[NORM])


def test_an_empty_directory_is_refused(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path}/config.json: is missing"
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")


def test_a_directory_without_weights_is_refused(wide):
    (wide / INDEX).unlink()
    assert refusal(wide) == f"{wide}/model.safetensors: is missing"


def test_a_bad_config_is_refused_by_its_field(wide):
    raw = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps({**raw, "n_routed_experts": 10**9}))
    assert refusal(wide).startswith(f"{wide}/config.json: n_routed_experts is 1000000000")


def test_a_truncated_shard_is_refused_before_its_data_is_read(wide):
    shard = shard_of(wide, NORM)
    os.truncate(shard, shard.stat().st_size - 1)
    line = refusal(wide)
    assert str(shard) in line and "the file is truncated" in line and "tensor model." in line


def test_a_missing_shard_is_refused_with_a_tensor_that_it_should_hold(wide):
    shard = shard_of(wide, QUERY)
    names = [
        name for name, at in json.loads((wide / INDEX).read_text())["weight_map"].items() if at == shard.name
    ]
    shard.unlink()
    assert refusal(wide) == f"{shard}: tensor {names[0]} the shard that holds it is missing"


def test_a_missing_tensor_is_refused_by_name(wide):
    change_index(wide, lambda weight_map: weight_map.pop(QUERY))
    assert refusal(wide) == f"{wide / INDEX}: tensor {QUERY} is missing from the checkpoint"


def test_a_tensor_that_is_not_where_the_index_says_is_refused(wide):
    rewrite(wide, QUERY, lambda _: None)
    assert (
        refusal(wide)
        == f"{shard_of(wide, QUERY)}: tensor {QUERY} is not in the shard where the index places it"
    )


def test_a_tensor_in_two_shards_is_refused(wide):
    source, target = shard_of(wide, QUERY), sorted(wide.glob("model-*.safetensors"))[-1]
    assert source != target
    save_file({**load_file(target), QUERY: load_file(source)[QUERY]}, target)
    assert refusal(wide) == f"{target}: tensor {QUERY} is there twice: the index places it in {source.name!r}"


def test_a_wrong_dtype_is_refused(wide):
    rewrite(wide, QUERY, lambda tensor: tensor.to(torch.int16))
    assert f"{shard_of(wide, QUERY)}: tensor {QUERY} has dtype I16" in refusal(wide)


def test_a_wrong_shape_is_refused(wide):
    rewrite(wide, QUERY, lambda tensor: tensor.t().contiguous())
    line = refusal(wide)
    assert (
        f"{shard_of(wide, QUERY)}: tensor {QUERY} has shape [64, 48], config.json asks for [48, 64]" in line
    )


def test_fp8_without_quantization_config_is_refused(wide):
    rewrite(wide, QUERY, lambda tensor: tensor.to(torch.float8_e4m3fn))
    assert "config.json has no quantization_config" in refusal(wide)


def test_an_fp8_norm_is_refused(fp8):
    rewrite(fp8, NORM, lambda tensor: tensor.to(torch.float8_e4m3fn))
    assert f"tensor {NORM} has dtype F8_E4M3, but only matrices" in refusal(fp8)


def test_fp8_without_scales_is_refused(fp8):
    rewrite(fp8, f"{QUERY}_scale_inv", lambda _: None)
    change_index(fp8, lambda weight_map: weight_map.pop(f"{QUERY}_scale_inv"))
    assert f"tensor {QUERY} is F8_E4M3 without its scales {QUERY}_scale_inv" in refusal(fp8)


def test_scales_of_a_wrong_shape_are_refused(fp8):
    rewrite(fp8, f"{QUERY}_scale_inv", lambda scale: scale.new_ones(2, 1))
    assert f"tensor {QUERY}_scale_inv has shape [2, 1]: blocks need [1, 1]" in refusal(fp8)


def test_scales_of_a_wrong_dtype_are_refused(fp8):
    rewrite(fp8, f"{QUERY}_scale_inv", lambda scale: scale.half())
    assert f"tensor {QUERY}_scale_inv has dtype F16" in refusal(fp8)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scales_that_are_not_finite_are_refused_when_read(fp8, bad):
    rewrite(fp8, f"{QUERY}_scale_inv", lambda scale: torch.full_like(scale, bad))
    shard = shard_of(fp8, f"{QUERY}_scale_inv")
    with pytest.raises(CheckpointError, match="NaN or infinite") as caught:
        Checkpoint.open(fp8).reader().read(QUERY, torch.bfloat16)
    assert f"{shard}: tensor {QUERY}_scale_inv" in str(caught.value)


SHARD_PATHS = {
    "parent": ("../outside.safetensors", "inside the checkpoint directory"),
    "parent by a detour": ("a/../../outside.safetensors", "inside the checkpoint directory"),
    "parent and back": ("../wide/a/good.safetensors", "inside the checkpoint directory"),
    "absolute": ("/etc/passwd", "inside the checkpoint directory"),
    "empty": ("", "inside the checkpoint directory"),
    "backslash": ("..\\outside.safetensors", "inside the checkpoint directory"),
    "NUL": ("a\0b", "cannot be opened"),
    "lone surrogate": ("\ud800.safetensors", "cannot be opened"),
    "directory": ("a", "is not a regular file"),
    "named pipe": ("a/pipe.safetensors", "is not a regular file"),
    "symlink out": ("a/link.safetensors", "is a symlink out"),
    "symlink to itself": ("a/loop.safetensors", "cannot be opened"),
    "symlinked directory": ("a/linked/outside.safetensors", "is a symlink out"),
    "number": (7, "expected a file name"),
}


@pytest.mark.parametrize("case", SHARD_PATHS)
def test_a_shard_outside_the_directory_is_refused_with_its_tensor(wide, case):
    outside = wide.parent / "outside.safetensors"
    shutil.copy(shard_of(wide, NORM), outside)  # a perfectly good shard, but not ours to read
    (wide / "a").mkdir()
    shutil.copy(outside, wide / "a" / "good.safetensors")
    (wide / "a" / "link.safetensors").symlink_to(outside)
    (wide / "a" / "loop.safetensors").symlink_to("loop.safetensors")
    (wide / "a" / "linked").symlink_to(wide.parent)
    os.mkfifo(wide / "a" / "pipe.safetensors")
    shard, words = SHARD_PATHS[case]
    (wide / INDEX).write_text(json.dumps({"weight_map": {NORM: shard}}))
    line = refusal(wide)
    assert f"tensor {NORM} " in line and words in line


def test_a_config_that_is_a_symlink_out_is_refused(wide):
    (wide / "config.json").rename(wide.parent / "config.json")
    (wide / "config.json").symlink_to(wide.parent / "config.json")
    assert refusal(wide) == f"{wide}/config.json: is a symlink out of the checkpoint directory"


def test_the_links_of_the_hugging_face_cache_are_followed(wide):
    """snapshots/REVISION/name -> ../../blobs/HASH is how a download looks."""
    snapshot, blobs = wide.parent / "hub" / "snapshots" / "abc", wide.parent / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(wide.iterdir())):
        file.rename(blobs / f"{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    checkpoint = Checkpoint.open(snapshot)
    checkpoint.check(required_tensors(checkpoint.config))
    assert checkpoint.reader().read(NORM, torch.float32).shape == (64,)


INDEXES = {
    "flipped to something else": b'\x7b"weight_map": \x5d\x7d',
    "empty": b"",
    "a list": b"[]",
    "no weight_map": b"{}",
    "weight_map a list": b'{"weight_map": []}',
    "duplicate name": b'{"weight_map": {"a": "x", "a": "y"}}',
    "UTF-16": '{"weight_map": {"a": "x"}}'.encode("utf-16"),
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("case", INDEXES)
def test_an_index_that_is_no_index_is_refused(wide, case):
    (wide / INDEX).write_bytes(INDEXES[case])
    assert refusal(wide).startswith(f"{wide / INDEX}: ")


def test_a_flipped_bit_of_a_header_is_refused_or_changes_nothing(wide):
    """The header has no checksum of its own: a flip in a name, number or bracket must not pass unseen."""
    shard = shard_of(wide, NORM)
    good = shard.read_bytes()
    before = Checkpoint.open(wide).tensors
    header_bytes = struct.unpack("<Q", good[:8])[0]
    refused = 0
    for at in range(0, 8 + header_bytes, 67):
        shard.write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
        try:
            assert Checkpoint.open(wide).tensors == before
        except CheckpointError as error:
            assert str(shard) in str(error)
            refused += 1
    assert refused > 50


# --- one safetensors file, by hand


def made_file(path, entries, data_bytes, *, header=None):
    text = json.dumps(entries).encode() if header is None else header
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\1" * data_bytes)
    return path


def entry(begin=0, end=4, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


GOOD = {"good.weight": entry()}
ENTRIES = {
    "unknown dtype": (entry(dtype="F12"), "'F12'"),
    "dtype a list": (entry(dtype=["F32"]), "dtype"),
    "shape negative": (entry(shape=(-1, -1)), "shape"),
    "shape a float": (entry(shape=(1.0,)), "shape"),
    "shape true": (entry(shape=(True,)), "shape"),
    "shape a number": ({**entry(), "shape": 1}, "shape"),
    "shape of 10^30": (entry(shape=(10**30,)), "shape"),
    "shape of 10,000 dims": (entry(shape=(1,) * 10_000), "shape"),
    "shape nested": ({**entry(), "shape": [[[[[[[[1]]]]]]]]}, "shape"),
    "shape against size": (entry(shape=(2,)), "is F32 [2] but holds 4 bytes"),
    "dtype against size": (entry(dtype="BF16"), "is BF16 [1] but holds 4 bytes"),
    "zero dim against size": (entry(shape=(0, 1 << 62)), "holds 4 bytes"),
    "negative offset": (entry(begin=-4, end=0), "data_offsets"),
    "reversed offsets": (entry(begin=4, end=0), "data_offsets"),
    "offsets in a text": ({**entry(), "data_offsets": "04"}, "data_offsets"),
    "three offsets": ({**entry(), "data_offsets": [0, 4, 4]}, "data_offsets"),
    "offset beyond the file": (entry(end=8, shape=(2,)), "truncated"),
    "offset beyond all files": (entry(end=1 << 62, shape=(1 << 60,)), "truncated"),
    "no offsets": ({"dtype": "F32", "shape": [1]}, "not an object of"),
    "one key more": ({**entry(), "extra": 1}, "not an object of"),
    "not an object": ([0, 4], "not an object of"),
    "hole before": (entry(begin=2, end=4, dtype="F16"), "leaves a hole after"),
    "bytes after": (entry(end=2, dtype="F16"), "but the file has"),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_a_hostile_entry_is_refused_on_one_line_with_file_and_tensor(tmp_path, case):
    raw, words = ENTRIES[case]
    path = made_file(tmp_path / "model.safetensors", {"bad.weight": raw}, 4)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: tensor bad.weight ")
    assert words in line
    assert line.isprintable() and len(line) < 400


FILES = {
    "no bytes at all": b"",
    "seven bytes": b"\2\0\0\0\0\0\0",
    "header longer than the file": struct.pack("<Q", 100) + b"{}",
    "header of 2^64 - 1": b"\xff" * 8 + b"{}",
    "header of nothing": struct.pack("<Q", 0) + b"{}",
    "header that is a list": struct.pack("<Q", 2) + b"[]",
    "header after a space": struct.pack("<Q", 3) + b" {}",
    "header cut in two": struct.pack("<Q", 5) + b'{"a":',
    "header not UTF-8": struct.pack("<Q", 9) + b'{"\xff": {}}',
    "header nested without end": struct.pack("<Q", 100_001) + b"{" + b"[" * 100_000,
    "data that nobody owns": struct.pack("<Q", 2) + b"{}" + b"\0",
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_safetensors_is_refused_by_name(tmp_path, case):
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILES[case])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        read_header(path)


def test_a_header_over_100_mb_is_refused_unread(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        file.truncate(MAX_HEADER_BYTES + 100)  # sparse: the size is there, the bytes are not
    with pytest.raises(CheckpointError, match=f"announces a header of {MAX_HEADER_BYTES + 1}"):
        read_header(path)


def test_duplicate_names_are_refused(tmp_path):
    one = json.dumps(entry())
    path = made_file(tmp_path / "m.safetensors", None, 4, header=f'{{"a.b": {one}, "a.b": {one}}}'.encode())
    with pytest.raises(CheckpointError, match=r"m\.safetensors: .*tensor a\.b is there twice"):
        read_header(path)


def test_overlapping_tensors_are_refused(tmp_path):
    entries = {"a": entry(end=8, shape=(2,)), "b": entry(begin=4, end=12, shape=(2,))}
    with pytest.raises(CheckpointError, match="tensor b overlaps 'a'"):
        read_header(made_file(tmp_path / "m.safetensors", entries, 12))


def test_metadata_must_be_text(tmp_path):
    with pytest.raises(CheckpointError, match="__metadata__ is not an object of strings"):
        read_header(made_file(tmp_path / "m.safetensors", {"__metadata__": {"a": 1}, **GOOD}, 4))


def test_a_name_with_line_breaks_stays_on_one_line(tmp_path):
    path = made_file(tmp_path / "m.safetensors", {"a\nb\x1b[31m\u2028": entry(dtype="X")}, 4)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert r"tensor a\nb\x1b[31m\u2028 has a dtype" in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-8, 40) | st.sampled_from(["F32", "BF16", "U8", "", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)
SPOILS = st.tuples(st.sampled_from("abc"), st.sampled_from(["dtype", "shape", "data_offsets", "more"]), JSON)
SIZES = {"F32": 4, "BF16": 2, "U8": 1, "I64": 8, "F8_E4M3": 1}
KINDS = st.tuples(st.sampled_from(sorted(SIZES)), st.lists(st.integers(0, 3), max_size=3))


def laid_out(kinds):
    """Entries end to end, and how many bytes they take."""
    entries, reached = {}, 0
    for name, (dtype, shape) in zip("abc", kinds, strict=False):
        end = reached + SIZES[dtype] * math.prod(shape)
        entries[name] = entry(reached, end, dtype, shape)
        reached = end
    return entries, reached


@settings(max_examples=100, deadline=None)
@given(
    kinds=st.lists(KINDS, max_size=3), spoil=st.none() | SPOILS, more_bytes=st.sampled_from([0, 0, 0, 1, -1])
)
def test_what_our_parser_accepts_the_safetensors_library_reads_alike(
    tmp_path_factory, kinds, spoil, more_bytes
):
    entries, data_bytes = laid_out(kinds)
    if spoil is not None and spoil[0] in entries:
        entries[spoil[0]][spoil[1]] = spoil[2]
    path = made_file(
        tmp_path_factory.getbasetemp() / "fuzz.safetensors", entries, max(0, data_bytes + more_bytes)
    )
    try:
        ours = read_header(path)
    except CheckpointError:
        assert spoil is not None or more_bytes, "a sound file was refused"
        return
    with safe_open(path, framework="pt") as theirs:
        assert {name: list(one.shape) for name, one in ours.items()} == {
            name: theirs.get_slice(name).get_shape()
            for name in theirs.keys()  # noqa: SIM118 - not a mapping
        }


def test_what_the_library_writes_our_parser_reads_alike(wide_source):
    for shard in wide_source.glob("*.safetensors"):
        ours = read_header(shard)
        theirs = load_file(shard)
        assert {name: one.shape for name, one in ours.items()} == {
            name: one.shape for name, one in theirs.items()
        }


def test_the_library_refuses_the_hole_too(tmp_path):
    path = made_file(tmp_path / "m.safetensors", {"a": entry(begin=4, end=8)}, 8)
    with pytest.raises(SafetensorError):
        load_file(path)
    with pytest.raises(CheckpointError, match="hole"):
        read_header(path)


# --- reading


def test_every_tensor_reads_as_the_library_reads_it(wide_source):
    reader = Checkpoint.open(wide_source).reader()
    for shard in wide_source.glob("*.safetensors"):
        for name, expected in load_file(shard).items():
            assert torch.equal(reader.read_raw(name), expected)
            assert torch.equal(reader.read(name, torch.float32), expected.float())


def test_fp8_reads_as_value_times_scale_of_its_block(fp8_source):
    stored = {}
    for shard in fp8_source.glob("*.safetensors"):
        stored |= load_file(shard)
    checkpoint = Checkpoint.open(fp8_source)
    checkpoint.check(required_tensors(checkpoint.config) | mtp_tensors(checkpoint.config))
    reader = checkpoint.reader()
    weights = [name for name, tensor in stored.items() if tensor.dtype == torch.float8_e4m3fn]
    assert (
        len(weights) == 3 * 33 * 3 + 3 + 4 * 7
    )  # experts with shared, the dense layer, attention with indexer
    for name in weights:
        expected = dequantize_blocks_reference(
            stored[name], stored[f"{name}_scale_inv"], BLOCK, torch.bfloat16
        )
        assert torch.equal(reader.read(name, torch.bfloat16), expected)


def test_scales_may_lie_in_another_shard_than_their_weight(fp8):
    before = Checkpoint.open(fp8).reader().read(QUERY, torch.float32)
    scale = f"{QUERY}_scale_inv"
    values = load_file(shard_of(fp8, scale))[scale]
    rewrite(fp8, scale, lambda _: None)
    save_file({scale: values}, fp8 / "model-scales.safetensors")
    change_index(fp8, lambda weight_map: weight_map.update({scale: "model-scales.safetensors"}))
    checkpoint = Checkpoint.open(fp8)
    checkpoint.check(required_tensors(checkpoint.config))
    assert torch.equal(checkpoint.reader().read(QUERY, torch.float32), before)


def test_bfloat16_scales_are_widened_before_use(fp8):
    name = "model.layers.0.mlp.gate_proj.weight"
    rewrite(fp8, f"{name}_scale_inv", lambda scale: scale.bfloat16())
    reader = Checkpoint.open(fp8).reader()
    weight, scale = reader.read_raw(name), reader.read_raw(f"{name}_scale_inv")
    expected = dequantize_blocks_reference(weight, scale.float(), BLOCK, torch.float32)
    assert torch.equal(reader.read(name, torch.float32), expected)


def test_a_reader_reads_only_the_bytes_it_is_asked_for(fp8_source):
    checkpoint = Checkpoint.open(fp8_source)
    owned = [name for expert in (3, 17) for name in expert_tensors(checkpoint.config, 2, expert)]
    reader = checkpoint.reader()
    for name in owned:
        reader.read(name, torch.float32)
    assert reader.bytes_read == checkpoint.stored_bytes(owned) == 2 * 3 * (64 * 32 + 4)


def test_shards_that_hold_nothing_of_ours_are_not_opened_for_reading(wide):
    checkpoint = Checkpoint.open(wide)
    for shard in wide.glob("*.safetensors"):
        if shard != shard_of(wide, NORM):
            shard.unlink()
    assert checkpoint.reader().read(NORM, torch.float32).shape == (64,)


def test_the_checksum_does_not_depend_on_the_order_of_reading(fp8_source):
    checkpoint = Checkpoint.open(fp8_source)
    names = list(attention_tensors(checkpoint.config))
    forward, backward = checkpoint.reader(), checkpoint.reader()
    for name in names:
        forward.read(name, torch.bfloat16)
    for name in reversed(names):
        backward.read(name, torch.float32)
    assert forward.checksum() == backward.checksum()
    assert forward.checksum() != checkpoint.reader().checksum()


@pytest.mark.parametrize("place", [0, -1])
def test_one_flipped_bit_changes_the_checksum(wide, place):
    def checksum():
        reader = Checkpoint.open(wide).reader()
        reader.read(QUERY, torch.float32)
        return reader.checksum()

    before = checksum()
    stored = Checkpoint.open(wide).tensor(QUERY)
    with stored.file.open("r+b") as file:
        file.seek(stored.offset + place % stored.num_bytes)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    assert checksum() != before


def test_progress_counts_up_to_the_total_in_the_clocks_seconds(wide_source):
    checkpoint = Checkpoint.open(wide_source)
    names = list(required_tensors(checkpoint.config))
    ticks = iter(range(1_000_000))
    seen: list[Progress] = []
    reader = checkpoint.reader(seen.append, total_names=names, clock=lambda: float(next(ticks)))
    for name in names:
        reader.read(name, torch.bfloat16)
    assert all(a.bytes_read < b.bytes_read and a.seconds < b.seconds for a, b in pairwise(seen))
    assert seen[-1] == Progress(
        bytes_read=checkpoint.stored_bytes(names),
        bytes_total=checkpoint.stored_bytes(names),
        seconds=float(len(names)),
    )


def test_progress_derives_rate_and_time_to_go():
    progress = Progress(bytes_read=2 * 10**9, bytes_total=10 * 10**9, seconds=4.0)
    assert (progress.gb_per_s, progress.eta_s) == (0.5, 16.0)
    start = Progress(bytes_read=0, bytes_total=10, seconds=0.0)
    assert (start.gb_per_s, start.eta_s) == (0.0, None)


def test_a_shard_that_shrank_after_opening_is_refused_by_name(wide):
    reader = Checkpoint.open(wide).reader()
    shard = shard_of(wide, QUERY)
    os.truncate(shard, 100)
    with pytest.raises(CheckpointError) as caught:
        reader.read(QUERY, torch.float32)
    assert str(caught.value).startswith(f"{shard}: tensor {QUERY} cannot be read")


def test_a_shard_that_vanished_after_opening_is_refused_by_name(wide):
    reader = Checkpoint.open(wide).reader()
    shard = shard_of(wide, QUERY)
    shard.unlink()
    with pytest.raises(CheckpointError) as caught:
        reader.read(QUERY, torch.float32)
    assert str(caught.value) == f"{shard}: tensor {QUERY} cannot be read: No such file or directory"


def test_reading_an_unknown_name_is_refused(wide_source):
    with pytest.raises(CheckpointError, match=r"tensor model\.nowhere is missing"):
        Checkpoint.open(wide_source).reader().read("model.nowhere", torch.float32)


def test_raw_reading_of_integers_is_refused(wide):
    rewrite(wide, QUERY, lambda tensor: tensor.to(torch.int16))
    with pytest.raises(CheckpointError, match="has dtype I16"):
        Checkpoint.open(wide).reader().read_raw(QUERY)
