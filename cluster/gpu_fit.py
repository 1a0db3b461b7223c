"""Whether a model can be served on the GPUs of this machine.

Says what is missing and how to mend it. Knows nothing of how GPUs are found (cluster/gpus.py).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from cluster.gpus import Gpu
from cluster.spec import ShoalSpec, SpecError
from model.config import ModelConfig
from model.memory import fp8_cache_bytes_per_token, fp8_weight_bytes

CAPABILITY = (9, 0)  # what the kernels are written for: H100, H200
WORK_BYTES = 6 << 30  # CUDA itself, buffers of a step, graphs


def check_gpus(found: Sequence[Gpu], num_actors: int = 1, *, triton: bool | None = None) -> None:
    """Raise SpecError unless each actor can have a GPU that kernels run on. triton: whether it is there."""
    if not found:
        raise SpecError(
            "device is cuda: no GPU is seen here; see `nvidia-smi` and CUDA_VISIBLE_DEVICES, or use "
            "--device cpu"
        )
    for gpu in found:
        if gpu.capability != CAPABILITY:
            kind = "sm_{}{}".format(*gpu.capability)
            raise SpecError(
                f"device is cuda: {gpu.name} is {kind}, the kernels are written for sm_90 (H100, H200); "
                "hide it with CUDA_VISIBLE_DEVICES, or use --device cpu"
            )
    if num_actors > len(found):
        raise SpecError(
            f"attention is {num_actors}: each needs a GPU of its own, {len(found)} are seen; set it to that"
        )
    if not (importlib.util.find_spec("triton") if triton is None else triton):
        raise SpecError("device is cuda: triton is not installed; install torch for CUDA, which brings it")


def check_model(spec: ShoalSpec, config: ModelConfig, found: Sequence[Gpu]) -> None:
    """Raise ConfigError where the kernels cannot take the model, SpecError where it has no room."""
    from model.fp8_weights import latent_shape  # late: it takes torch

    latent_shape(config)
    if config.fp8_block not in (None, (128, 128)):
        raise SpecError(f"weight_block_size is {config.fp8_block}: the FP8 kernels take 128 x 128")
    weights, cache = fp8_weight_bytes(config), spec.cache_tokens * fp8_cache_bytes_per_token(config)
    for gpu in found:
        if weights + cache + WORK_BYTES > gpu.memory_bytes:
            raise SpecError(
                f"not enough GPU memory: weights take {weights / 1e9:.1f} GB, {spec.cache_tokens} tokens of "
                f"cache {cache / 1e9:.1f} GB, the work about {WORK_BYTES / 1e9:.1f} GB; {gpu.name} has "
                f"{gpu.memory_bytes / 1e9:.1f} GB; lower cache_tokens, or serve fewer layers"
            )
