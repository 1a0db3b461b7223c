"""The program that tries grammars, one after another.

`python -m ingress.compile_helper CHECKPOINT_DIRECTORY MEMORY_BYTES`: whoever started it may kill it at any
time. Each text that it reads is a grammar, each that it writes says why that one is none, or is empty; the
first says that it is ready. It ends with its input. Knows nothing of requests, and loads neither torch nor a
model.
"""

from __future__ import annotations

import resource
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

from ingress.pipe import read_text, write_text
from ingress.specials import EOS
from model.grammar import GrammarError, Grammars, special_id

TRIED_TOKENS = 16
STACK_BYTES = 8 << 20  # half of what the actors have for it


def main() -> None:
    """Serve standard input until it ends."""
    directory, memory_bytes = Path(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for whoever started it
    threading.stack_size(STACK_BYTES)
    serving = threading.Thread(target=_serve, args=(directory, sys.stdin.buffer, sys.stdout.buffer))
    serving.start()
    serving.join()


def _serve(directory: Path, source: IO[bytes], sink: IO[bytes]) -> None:
    end_id = special_id(directory, EOS.text)
    if end_id is None:
        raise SystemExit(f"{directory}: the vocabulary lacks {EOS.text!r}")
    grammars = Grammars(directory, vocab_size=None, end_ids=[end_id])
    with suppress(BrokenPipeError):  # nobody waits any more
        write_text(sink, "")
        while (grammar := read_text(source)) is not None:
            write_text(sink, _objection(grammars, grammar))


def _objection(grammars: Grammars, grammar: str) -> str:
    """Why it cannot be served, or nothing: it compiles, and a text can be begun."""
    try:
        matcher = grammars.compile(grammar)
    except GrammarError as error:
        return str(error) or "no grammar"
    for _ in range(TRIED_TOKENS):
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        for end_id in grammars.end_ids:
            mask &= ~(1 << end_id)
        if not mask or matcher.is_error():
            break
        matcher.consume_token((mask & -mask).bit_length() - 1)
    return matcher.get_error()


if __name__ == "__main__":
    main()
