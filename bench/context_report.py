"""What a run of bench/context.py found: table, JSON, curves.

Knows nothing of how it was measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.table import Table

from bench.machine import command, describe
from bench.plots import lines

ROOT = Path(__file__).parents[1]
RESULTS, FIGURES = ROOT / "bench" / "results" / "context.json", ROOT / "docs" / "figures"
CHUNK_TOKENS = 128  # as SchedulerLimits has it

Bursts = list[list[float]]  # seconds: of each step, round by round


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """rounds: turns of each system at each context, a chunk in one and `tokens` decoded in the other."""

    contexts: tuple[int, ...]
    rounds: int = 3
    tokens: int = 16
    computed: bool = False

    @property
    def decoded(self) -> int:
        """Tokens after the prompt, in whole chunks."""
        return -(-(self.rounds * self.tokens + 1) // CHUNK_TOKENS) * CHUNK_TOKENS


@dataclass(kw_only=True, slots=True)
class Point:
    """One system at one context. index_s: of the decoded tokens, what choosing keys took.

    peak_bytes: what a chunk of a prompt needs for a moment, None where that is not told.
    """

    system: str
    context: int
    bytes_per_token: int
    prefill: Bursts = field(default_factory=list)
    decode: Bursts = field(default_factory=list)
    index_s: list[float] = field(default_factory=list)
    peak_bytes: int | None = None

    @property
    def tpot_ms(self) -> float:
        return median(median(burst) for burst in self.decode) * 1e3

    @property
    def index_ms(self) -> float:
        """Of tpot_ms."""
        return sum(self.index_s) / sum(len(burst) for burst in self.decode) * 1e3

    @property
    def prefill_tokens_per_s(self) -> float:
        return CHUNK_TOKENS / median(seconds for burst in self.prefill for seconds in burst)

    def figures(self) -> dict[str, Any]:
        """What a program reads."""
        return {
            "system": self.system,
            "context": self.context,
            "tpot_ms": round(self.tpot_ms, 3),
            "tpot_ms_rounds": [round(median(burst) * 1e3, 3) for burst in self.decode],
            "index_ms": round(self.index_ms, 3),
            "prefill_tokens_per_s": round(self.prefill_tokens_per_s, 2),
            "cache_bytes": self.context * self.bytes_per_token,
            "peak_bytes": self.peak_bytes,
        }


def table(points: Sequence[Point]) -> Table:
    """A row per pair of points: the first system, the second, and how many times the first is quicker."""
    title = ", ".join(
        f"{point.system}: {point.bytes_per_token:,} bytes of cache a token" for point in points[:2]
    )
    shown = Table("context", title=title, title_justify="left")
    for what in ("TPOT ms", "of it index", "dense", "x", "prefill tok/s", "dense", "x", "peak MB", "dense"):
        shown.add_column(what, justify="right")
    for dsa, dense in zip(points[::2], points[1::2], strict=True):
        shown.add_row(
            f"{dsa.context:,}",
            f"{dsa.tpot_ms:.1f}",
            f"{dsa.index_ms:.1f}",
            f"{dense.tpot_ms:.1f}",
            f"{dense.tpot_ms / dsa.tpot_ms:.2f}",
            f"{dsa.prefill_tokens_per_s:.0f}",
            f"{dense.prefill_tokens_per_s:.0f}",
            f"{dsa.prefill_tokens_per_s / dense.prefill_tokens_per_s:.2f}",
            *("?" if one.peak_bytes is None else f"{one.peak_bytes / 1e6:.0f}" for one in (dsa, dense)),
        )
    return shown


def write(points: Sequence[Point], plan: Plan) -> None:
    """The JSON and the curves that the documents quote."""
    run = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command("bench.context"),
        "machine": describe(),
        "load_after": round(psutil.getloadavg()[0], 1),
        "plan": asdict(plan),
        "measured": [point.figures() for point in points],
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    axes = ("context, tokens", "CPU ms a token")
    contexts = [float(point.context) for point in points[::2]]
    decode = {
        "dense attention": (contexts, [point.tpot_ms for point in points[1::2]]),
        "DSA": (contexts, [point.tpot_ms for point in points[::2]]),
        "DSA without its indexer": (contexts, [point.tpot_ms - point.index_ms for point in points[::2]]),
    }
    lines(FIGURES / "context.png", "A decoded token, by context", decode, axes=axes, log="x")
    prefill = {
        "dense attention": (contexts, [point.prefill_tokens_per_s for point in points[1::2]]),
        "DSA": (contexts, [point.prefill_tokens_per_s for point in points[::2]]),
    }
    axes = ("context, tokens", "tokens/s")
    lines(FIGURES / "context-prefill.png", "Prefill, by context", prefill, axes=axes, log="xy")
