"""From a checkpoint, or from nothing, to what an engine on one GPU runs on.

Knows nothing of who starts it, nor of CPUs.

Errors: ConfigError for a model that the kernels cannot take or a process without a GPU, CheckpointError from
the load.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from actors.fp8_runner import fp8_parts
from actors.options import ActorOptions, AttentionOptions, WeightsRead
from actors.row_runner import RowRunner
from actors.scheduler import SchedulerLimits
from model.cache import PAGE_TOKENS
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.fields import ConfigError
from model.fp8_load import load_fp8_model
from model.fp8_places import tensors_of_model
from model.fp8_random import random_model
from model.fp8_weights import Fp8Model, latent_shape
from model.random_mark import read_mark
from model.reader import Progress


def build_gpu_runner(
    options: ActorOptions,
    attention: AttentionOptions,
    limits: SchedulerLimits,
    note: Callable[[Progress], None],
) -> tuple[RowRunner, ModelConfig, WeightsRead]:
    """All of the model on this process's GPU, every step captured."""
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device is cuda: torch {torch.__version__} sees no GPU here; ask `shoal doctor`, "
            "or use --device cpu"
        )
    model, config, read = load_or_make(options, torch.device("cuda"), note)
    tokens = attention.cache_tokens
    parts = fp8_parts(
        config,
        model,
        limits,
        num_pages=None if tokens is None else tokens // PAGE_TOKENS + 1,
        context_tokens=attention.context_tokens,
        draft_tokens=options.draft_tokens,
    )
    return parts.runner(draft_tokens=options.draft_tokens), config, read


def load_or_make(
    options: ActorOptions, device: torch.device, note: Callable[[Progress], None]
) -> tuple[Fp8Model, ModelConfig, WeightsRead]:
    """Weights out of the directory, or of noise where it says so."""
    directory = Path(options.directory)
    if mark := read_mark(directory, options.draft_tokens):
        config, seed = mark
        latent_shape(config)  # refuses before it takes memory, here and below
        return random_model(config, device, seed), config, WeightsRead(bytes_read=0, checksum=f"noise {seed}")
    checkpoint = Checkpoint.open(directory)
    config = checkpoint.config_to_serve(options.draft_tokens)
    latent_shape(config)
    reader = checkpoint.reader(note, total_names=tensors_of_model(config))
    model = load_fp8_model(reader, config, device)
    return model, config, WeightsRead(bytes_read=reader.bytes_read, checksum=reader.checksum())
