"""Models of noise, ready to serve: for who has the machine before the model.

Small ones for a laptop, or DeepSeek-V3.2 at its true width with fewer layers: on disk as a checkpoint, or as
`random:5`, a name whose weights are made on the device. Knows nothing of how noise is made.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cluster.spec import RANDOM, SpecError, cache_directory
from ingress.tokenizer_file import write_byte_tokenizer
from model.config import ModelConfig
from model.random_mark import write_mark

MOST_LAYERS = 61  # of the released model
SEED = 0


def write_checkpoint(directory: Path, preset: str, seed: int) -> ModelConfig:
    """A seeded random checkpoint with a byte-level tokenizer."""
    # Late, here and below: it takes torch, which nothing else here does.
    from model.tiny import preset_shape, write_tiny

    vocab_size = write_byte_tokenizer(directory, preset_shape(preset).vocabulary)
    return write_tiny(directory, preset=preset, seed=seed, vocab_size=vocab_size)


def write_true_width_checkpoint(
    directory: Path,
    *,
    layers: int,
    mtp: bool,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> ModelConfig:
    """The same at true width. Raises ValueError where the disk has no room, before anything is written."""
    from model.true_width import VOCABULARY, true_width_json, write_true_width

    config = write_true_width(
        directory, true_width_json(layers=layers, mtp=mtp), seed=seed, progress=progress
    )
    write_byte_tokenizer(directory, vocab_size=VOCABULARY)
    return config


def random_directory(model: str, *, mtp: bool) -> Path:
    """Of `random:LAYERS`: a directory without weights, made at need. Raises SpecError."""
    from model.true_width import VOCABULARY, true_width_json

    text = model.removeprefix(RANDOM)
    if not text.isdecimal() or not 1 <= int(text) <= MOST_LAYERS:
        raise SpecError(
            f"model is {model!r}: expected random:LAYERS with 1 to {MOST_LAYERS} layers, as random:5"
        )
    directory = cache_directory() / f"random-{int(text)}{'-mtp' if mtp else ''}"
    write_mark(directory, true_width_json(layers=int(text), mtp=mtp), SEED)
    write_byte_tokenizer(directory, vocab_size=VOCABULARY)
    return directory
