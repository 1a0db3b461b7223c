"""What can be known to fail before any process starts.

Finds the checkpoint (the embedded one where none is named), reads every header, and asks whether the machine
has room. Knows nothing of Ray, and of torch only where a GPU is asked for, so that a failure is said at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.embedded import NAME as EMBEDDED_NAME
from cluster.embedded import check_embedded, embedded_directory
from cluster.gpu_fit import check_gpus, check_model
from cluster.gpus import gpus
from cluster.random_model import random_directory
from cluster.spec import RANDOM, ShoalSpec, SpecError
from ingress.keys import read_keys
from ingress.specials import TEMPLATE_SPECIALS
from ingress.tokens import Tokenizer
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.memory import cache_values_per_token, fp8_cache_bytes_per_token, weight_values
from model.names import mtp_tensors, required_tensors
from model.random_mark import read_mark

PROCESS_BYTES = 350 << 20  # one actor process with torch imported, measured as proportional set size
GPU_PROCESS_BYTES = 4 << 30  # with CUDA's libraries and the pinned memory of a load, estimated


@dataclass(frozen=True, kw_only=True, slots=True)
class Preflight:
    """A checkpoint that can be served on this machine; config has an MTP layer if something is drafted."""

    directory: Path
    model_name: str
    config: ModelConfig
    context_tokens: int
    draft_tokens: int
    cache_bytes_per_token: int
    needed_bytes: int


def examine(spec: ShoalSpec) -> Preflight:
    """Raises SpecError, KeysError, ConfigError, CheckpointError or TokenizerError, each with its remedy."""
    if spec.api_keys is not None and not read_keys(Path(spec.api_keys)):
        raise SpecError(f"{spec.api_keys} holds no key: make one with `shoal keys add {spec.api_keys} NAME`")
    directory = _find(spec)
    draft_tokens = 1 if spec.draft_tokens is None else spec.draft_tokens
    config = _config(directory, draft_tokens)
    if spec.device == "cuda":
        _check_gpus(spec, config)
    if not config.num_mtp_layers:
        if spec.draft_tokens:
            raise SpecError(f"draft_tokens is {spec.draft_tokens}: the model has no MTP layer; set it to 0")
        draft_tokens = 0
    _check_tokenizer(directory, config)
    if spec.experts > config.num_experts:
        raise SpecError(
            f"experts is {spec.experts}: the model has {config.num_experts} experts per layer to spread"
        )
    context_tokens = spec.context_tokens or min(config.max_position_embeddings, spec.cache_tokens)
    if context_tokens > config.max_position_embeddings:
        raise SpecError(
            f"context_tokens is {context_tokens}: the model has {config.max_position_embeddings}; lower it"
        )
    needed = needed_bytes(spec, config)
    available = psutil.virtual_memory().available
    if spec.address is None and needed > available:
        raise SpecError(
            f"not enough memory: {spec.attention} attention and {spec.experts} expert actors need about "
            f"{needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are free; "
            "use fewer actors or replicas, a smaller cache_tokens, or dtype int8"
        )
    name = spec.served_model_name or (directory.name if spec.model else EMBEDDED_NAME)
    return Preflight(
        directory=directory,
        model_name=name,
        config=config,
        context_tokens=context_tokens,
        draft_tokens=draft_tokens,
        cache_bytes_per_token=_cache_bytes_per_token(spec, config),
        needed_bytes=needed,
    )


def needed_bytes(spec: ShoalSpec, config: ModelConfig) -> int:
    """Weights, caches and processes of the whole cluster on one machine, without what lies on GPUs."""
    if spec.device == "cuda":
        return spec.attention * GPU_PROCESS_BYTES
    attention, routed = weight_values(config)
    copies = spec.attention if spec.experts == 0 else spec.replicas_per_expert
    cache = cache_values_per_token(config) * spec.cache_tokens
    values = spec.attention * (attention + cache) * spec.value_bytes
    experts = (copies + spec.redundant_slots / config.num_experts) * routed * spec.expert_value_bytes
    processes = (spec.attention + spec.experts + spec.standbys) * PROCESS_BYTES
    return values + int(experts) + processes


def _config(directory: Path, draft_tokens: int) -> ModelConfig:
    """With the layers that will be served, all of whose tensors are there, or are to be made."""
    if mark := read_mark(directory, draft_tokens):
        return mark[0]
    checkpoint = Checkpoint.open(directory)
    config = checkpoint.config_to_serve(draft_tokens)
    checkpoint.check(required_tensors(config) | mtp_tensors(config))
    return config


def _check_gpus(spec: ShoalSpec, config: ModelConfig) -> None:
    """Those of this machine; a joined cluster's are on others."""
    found = gpus() if spec.address is None else []
    if spec.address is None:
        check_gpus(found, spec.attention)
    check_model(spec, config, found)


def _cache_bytes_per_token(spec: ShoalSpec, config: ModelConfig) -> int:
    if spec.device == "cuda":
        return fp8_cache_bytes_per_token(config)
    return cache_values_per_token(config) * spec.value_bytes


def _find(spec: ShoalSpec) -> Path:
    if spec.model is not None and spec.model.startswith(RANDOM):
        return random_directory(spec.model, mtp=bool(spec.draft_tokens))
    if spec.model is not None:
        directory = Path(spec.model).expanduser()
        if not directory.is_dir():
            raise SpecError(
                f"model is {spec.model!r}: no such directory; give a Hugging Face checkpoint directory"
            )
        return directory
    directory = embedded_directory()
    check_embedded(directory)
    return directory


def _check_tokenizer(directory: Path, config: ModelConfig) -> None:
    tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
    if tokenizer.vocab_size > config.vocab_size:
        raise SpecError(
            f"{directory / 'tokenizer.json'} has {tokenizer.vocab_size} tokens, "
            f"the model {config.vocab_size}: they do not belong together"
        )
    tokenizer.encode_prompt(TEMPLATE_SPECIALS)
