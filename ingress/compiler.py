"""Whether a grammar can be served.

Asks a process that is killed if it takes too long or too much (ingress/compile_helper.py), so that no
client's schema can hold up or end more than its own request. What is known of a grammar is remembered. Knows
nothing of requests beyond the field that an error names.

Errors: InvalidRequest, Overloaded (ingress/errors.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from actors.turns import Turns
from ingress.errors import InvalidRequest, Overloaded
from ingress.pipe import read_text, write_text

logger = logging.getLogger(__name__)

HELPER = "ingress.compile_helper"
ROOT = Path(__file__).resolve().parents[1]
MAX_KNOWN = 4096  # grammars
MAX_WAITING = 64
MAX_WAITING_IN_LINE = 16
RETRY_S = 1.0
ATTEMPTS = 2  # what kills the helper twice is to blame


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileLimits:
    """compile_s: of one grammar. memory_bytes: address space of the helper. start_s: until it is ready."""

    compile_s: float = 2.0
    memory_bytes: int = 2 << 30
    start_s: float = 30.0


class HelperLost(Exception):  # noqa: N818 - named for what happened, as the rest of the tree
    """The helper ended before it answered. took_too_long: because its time was up."""

    def __init__(self, *, took_too_long: bool) -> None:
        super().__init__("the helper that compiles grammars ended")
        self.took_too_long = took_too_long


class GrammarCompiler:
    """One helper, begun with the first grammar; lines take turns, so no tenant's grammars delay another's
    by more than one.
    """

    def __init__(self, directory: Path, limits: CompileLimits | None = None) -> None:
        self._directory = directory
        self._limits = limits or CompileLimits()
        self._known: OrderedDict[bytes, str] = OrderedDict()  # digest -> objection
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammars")
        self._waiting: Turns[asyncio.Future[None]] = Turns()
        self._is_busy = False
        self._helper: _Helper | None = None

    async def check(self, grammar: str, param: str | None, line: Hashable = None) -> None:
        """Raises InvalidRequest that names `param` unless the grammar can be served. line: who asks."""
        digest = hashlib.sha256(grammar.encode("utf-8", "surrogatepass")).digest()
        if digest not in self._known:
            objection = await self._ask(grammar, param, line)
            self._known[digest] = objection
            while len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(digest)
        if self._known[digest]:
            why = " ".join(self._known[digest].split())
            raise InvalidRequest(f"cannot be enforced: {why}", param=param)

    def close(self) -> None:
        """End the helper; no more will be asked."""
        self._worker.shutdown(wait=False, cancel_futures=True)
        if self._helper is not None:
            self._helper.end()

    async def _ask(self, grammar: str, param: str | None, line: Hashable) -> str:
        """The helper's objection, or nothing. What is not the grammar's own fault is not remembered."""
        own, everybodys = self._waiting.num_in(line), len(self._waiting)
        if own >= MAX_WAITING_IN_LINE or everybodys >= MAX_WAITING:
            waiting = f"{everybodys} grammars wait to be compiled, {own} of them yours"
            raise Overloaded(waiting, retry_after_s=RETRY_S)
        try:
            async with self._turn(line):
                return await asyncio.get_running_loop().run_in_executor(self._worker, self._try, grammar)
        except HelperLost as lost:
            what = (
                f"takes over {self._limits.compile_s:g} s" if lost.took_too_long else "needs too much memory"
            )
            raise InvalidRequest(f"cannot be enforced: it {what} to compile", param=param) from None
        except OSError as error:
            logger.error("no helper to compile grammars: %s", error)
            raise Overloaded("grammars cannot be compiled now", retry_after_s=RETRY_S) from None

    @asynccontextmanager
    async def _turn(self, line: Hashable) -> AsyncIterator[None]:
        """Alone with the helper, but for what the one before has left there when it was cancelled."""
        if self._is_busy:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.put(line, turn, turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._waiting.discard(turn)
                if not turn.cancelled():  # it had been given the turn already
                    self._pass_on()
                raise
        self._is_busy = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        turn = self._waiting.next()
        while turn is not None and turn.done():
            turn = self._waiting.next()
        self._is_busy = turn is not None
        if turn is not None:
            turn.set_result(None)

    def _try(self, grammar: str) -> str:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if self._helper is None:
                    self._helper = _Helper(self._directory, self._limits)
                return self._helper.ask(grammar, self._limits.compile_s)
            except HelperLost as lost:
                self._helper = None
                logger.warning("%s (too long: %s)", lost, lost.took_too_long)
                if lost.took_too_long or attempt == ATTEMPTS:
                    raise
        raise AssertionError("every attempt returns or raises")


class _Helper:
    """The process. Raises OSError where it cannot be begun."""

    def __init__(self, directory: Path, limits: CompileLimits) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", HELPER, str(directory.resolve()), str(limits.memory_bytes)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            self._read(limits.start_s)
        except HelperLost as lost:
            raise OSError("it did not start") from lost

    def ask(self, grammar: str, patience_s: float) -> str:
        assert self._process.stdin is not None, "a pipe, as asked for"
        try:
            write_text(self._process.stdin, grammar)
        except OSError:
            self.end()
            raise HelperLost(took_too_long=False) from None
        return self._read(patience_s)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None, "a pipe, as asked for"
            with suppress(OSError):  # what could not be written is of no use any more
                pipe.close()

    def _read(self, patience_s: float) -> str:
        """Its next text. A timer kills it, which ends the reading too."""
        assert self._process.stdout is not None, "a pipe, as asked for"
        is_late = threading.Event()

        def kill() -> None:
            is_late.set()
            self._process.kill()

        timer = threading.Timer(patience_s, kill)
        timer.start()
        try:
            text = read_text(self._process.stdout)
        finally:
            timer.cancel()
        if text is None:
            self.end()
            raise HelperLost(took_too_long=is_late.is_set())
        return text
