"""transformers' `generate`, timed, behind a pipe.

`python -m bench.hf CHECKPOINT` reads one JSON order per line and writes one JSON list of answers per line.
Knows nothing of Shoal. bench/baseline.py is the other end.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import DeepseekV32ForCausalLM
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging


class Arrivals(BaseStreamer):
    """When each token of a batch came."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompts first, then with one token of every sequence."""
        self.times_s.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""


def main() -> None:
    """Answer orders until the pipe is closed."""
    answers_to, sys.stdout = sys.stdout, sys.stderr  # the pipe carries answers and nothing else
    models: dict[str, Any] = {}
    for line in sys.stdin:
        order = json.loads(line)
        dtype = order["dtype"]
        if dtype not in models:
            models[dtype] = load_model(Path(sys.argv[1]), getattr(torch, dtype))
        answers_to.write(json.dumps(_answer(models[dtype], order)) + "\n")
        answers_to.flush()


def load_model(checkpoint: Path, dtype: torch.dtype) -> Any:
    """Without a word about what it leaves out."""
    library: Any = logging  # untyped
    library.set_verbosity_error()
    library.disable_progress_bar()
    model: Any = DeepseekV32ForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    model.train(False)
    model.generation_config.eos_token_id = None  # as ignore_eos does
    model.generation_config.pad_token_id = 0
    return model


def _answer(model: Any, order: dict[str, Any]) -> list[dict[str, Any]]:
    """Static batches, one after another."""
    torch.set_num_threads(order["threads"])
    model.set_attn_implementation(order["attention"])
    model.set_experts_implementation(order["experts"])
    prompts, batch = order["prompts"], order["batch"]
    answers = []
    for first in range(0, len(prompts), batch):
        answers += _generate(model, prompts[first : first + batch], order["new_tokens"])
    return answers


@torch.inference_mode()
def _generate(model: Any, prompts: list[list[int]], new_tokens: int) -> list[dict[str, Any]]:
    """Shorter prompts are padded on the left."""
    streamer = Arrivals()
    width = max(map(len, prompts))
    padded = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    sent_s = time.perf_counter()
    ids = model.generate(
        padded,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        do_sample=False,
        streamer=streamer,
    )
    arrivals_s = streamer.times_s[1:]
    made = ids[:, width:].tolist()
    return [{"token_ids": row, "sent_s": sent_s, "arrivals_s": arrivals_s} for row in made]


if __name__ == "__main__":
    main()
