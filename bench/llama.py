"""llama.cpp's low-level interface, timed, behind a pipe.

`python -m bench.llama GGUF` reads one JSON order per line and writes one JSON answer per line: as bench/hf.py
does, but it runs under any interpreter that has llama_cpp, so it imports nothing of Shoal. Knows nothing of
texts: tokens are ids. bench/llama_process.py is the other end.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

F32 = 0  # of ggml's types
NO_FLASH = 0  # of llama_flash_attn_type: its kernel for CPUs rounds
CELLS = 256  # of a sequence's cache, rounded up to
WARNING = 3  # of ggml's log levels
PROMPT_TOKENS = 512  # of one decode call at most, llama.cpp's own default


class Context:
    """Sequences that are decoded together."""

    def __init__(self, model: Any, *, sequences: int, tokens: int, threads: int, exact: bool = False) -> None:
        """exact: nothing is rounded to 16 bits on the way, as llama.cpp's defaults do."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = sequences * -(-tokens // CELLS) * CELLS
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = max(PROMPT_TOKENS, sequences)
        params.n_threads = params.n_threads_batch = threads
        if exact:
            params.type_k = params.type_v = F32
            params.flash_attn_type = NO_FLASH
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp made no context of {sequences} x {tokens} tokens")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)

    def clear(self) -> None:
        """Forget every sequence."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)

    def decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        """rows: (token, position, sequence, whether its logits are wanted)."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        failed = llama_cpp.llama_decode(self._context, batch)
        if failed:
            raise RuntimeError(f"llama_decode of {len(rows)} tokens returned {failed}")

    def logits(self, row: int) -> np.ndarray:
        """Of one row of the last decode; valid until the next."""
        pointer = llama_cpp.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, (self._vocab,))

    def prefill(self, prompts: Sequence[Sequence[int]], *, all_logits: bool = False) -> Iterator[list[int]]:
        """Of each decode the rows whose logits are wanted: the last of each prompt, or all."""
        rows = [
            (token, position, sequence, all_logits or position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        for first in range(0, len(rows), PROMPT_TOKENS):
            some = rows[first : first + PROMPT_TOKENS]
            self.decode(some)
            yield [row for row, (*_, wanted) in enumerate(some) if wanted]


def main() -> None:
    """Answer orders until the pipe is closed."""
    answers_to = os.fdopen(os.dup(1), "w")  # the pipe carries answers and nothing else,
    os.dup2(2, 1)  # whatever C++ prints
    quiet = llama_cpp.llama_log_callback(_say)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), llama_cpp.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp does not load {Path(sys.argv[1]).name}")
    for line in sys.stdin:
        order = json.loads(line)
        answer = _logits(model, order) if "logits_to" in order else _answer(model, order)
        answers_to.write(json.dumps(answer) + "\n")
        answers_to.flush()


def _say(level: int, text: bytes, _: Any) -> None:
    if level >= WARNING:
        sys.stderr.write(text.decode(errors="replace"))


def _logits(model: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Those of every token of one prompt, fp32, into a file of nothing else."""
    prompt, found = order["prompt"], list[np.ndarray]()
    with _context(model, sequences=1, tokens=len(prompt), threads=1, exact=True) as context:
        for rows in context.prefill([prompt], all_logits=True):
            found += [context.logits(row).copy() for row in rows]
    Path(order["logits_to"]).write_bytes(np.stack(found).tobytes())
    return {"shape": [len(found), len(found[0])]}


def _answer(model: Any, order: dict[str, Any]) -> list[dict[str, Any]]:
    """Static batches, one after another."""
    prompts, batch, new_tokens = order["prompts"], order["batch"], order["new_tokens"]
    tokens = max(map(len, prompts)) + new_tokens
    answers = []
    with _context(
        model, sequences=batch, tokens=tokens, threads=order["threads"], exact=order["exact"]
    ) as context:
        for first in range(0, len(prompts), batch):
            answers += _generate(context, prompts[first : first + batch], new_tokens)
            context.clear()
    return answers


def _generate(context: Context, prompts: list[list[int]], new_tokens: int) -> list[dict[str, Any]]:
    """Greedy; the prompts first, then one token of every sequence at a time."""
    made: list[list[int]] = [[] for _ in prompts]
    sent_s, arrivals_s = time.perf_counter(), list[float]()
    firsts: list[int] = []
    for rows in context.prefill(prompts):
        firsts += [int(context.logits(row).argmax()) for row in rows]
    while True:
        for sequence, token in enumerate(firsts):
            made[sequence].append(token)
        arrivals_s.append(time.perf_counter())
        if len(arrivals_s) == new_tokens:
            break
        position = len(arrivals_s) - 1
        context.decode([(token, len(prompts[i]) + position, i, True) for i, token in enumerate(firsts)])
        firsts = [int(context.logits(row).argmax()) for row in range(len(firsts))]
    return [{"token_ids": row, "sent_s": sent_s, "arrivals_s": arrivals_s} for row in made]


@contextmanager
def _context(model: Any, **how: Any) -> Iterator[Context]:
    context = Context(model, **how)
    try:
        yield context
    finally:
        context.close()


if __name__ == "__main__":
    main()
