"""A long run in parts, each written down as it ends.

A part that fails is told and does not end the rest. Knows nothing of what is measured.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.machine import command, describe


class Report:
    """Figures by part, on stderr and in the file `out`."""

    def __init__(self, module: str, out: Path | None) -> None:
        self._out, self._start_s = out, time.perf_counter()
        self.figures: dict[str, Any] = {"command": command(module), "machine": describe()}
        self.failed = 0

    def part(self, name: str, compute: Callable[[], Any]) -> None:
        start_s = time.perf_counter()
        try:
            found = compute()
        except Exception as error:  # noqa: BLE001 - device time is dear: the other parts still count
            self.failed += 1
            found = f"FAILED: {type(error).__name__}: {error}"[:2000]
            self.say(traceback.format_exc())
        self.figures[name] = found
        self.say(f"{name}: {json.dumps(found)} ({time.perf_counter() - start_s:.1f} s)")
        if self._out:
            self._out.write_text(json.dumps(self.figures, indent=1) + "\n")

    def say(self, text: str) -> None:
        sys.stderr.write(f"[{time.perf_counter() - self._start_s:6.1f} s] {text}\n")
        sys.stderr.flush()

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.perf_counter() - self._start_s
