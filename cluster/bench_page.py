"""What a load test found, as one HTML page.

Plots are SVG inside it; it asks for nothing from anywhere and runs nothing. Knows nothing of how the figures
came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from cluster.bench_load import Result

WIDTH, HEIGHT, MARGIN = 560, 220, 46
COLOURS = {"TTFT": "#0072B2", "TPOT": "#D55E00", "E2E": "#009E73"}  # Okabe and Ito's
NAMES = {"TTFT": "time to the first token", "TPOT": "time per token after it", "E2E": "whole answer"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .2rem .9rem; text-align: right; border-bottom: 1px solid #8884; }
td:first-child, th:first-child { text-align: left; }
svg { max-width: 100%; } text { font-size: 11px; fill: currentColor; }
.axis { stroke: currentColor; opacity: .4; } .failed { color: #c33; }
"""


def page(result: Result) -> str:
    """The whole document."""
    figures, load = result.figures(), result.load
    how = f"{load.rate:g} requests/s" if load.rate is not None else f"{load.concurrency} at once"
    body = [
        f"<h1>{escape(result.model)}</h1>",
        f"<p>{figures['requests']} requests, {how}, prompts of {load.prompt_tokens} random tokens, "
        f"{load.max_tokens} tokens each, seed {load.seed}, at {escape(result.url)}.</p>",
        f"<p><b>{figures['tokens_per_s']:g}</b> tokens/s, <b>{figures['requests_per_s']:g}</b> requests/s "
        f"over {figures['seconds']:g} s.</p>",
        _failures(figures["failed"]),
        _table(figures["ms"]),
        *(_plot(name, values) for name, values in result.times_ms().items() if values),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="content-security-policy" content="{POLICY}">'
        f"<title>shoal bench: {escape(result.model)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{chr(10).join(body)}\n</body></html>\n"
    )


def _failures(failed: dict[str, int]) -> str:
    if not failed:
        return "<p>None failed.</p>"
    items = "".join(f"<li>{count} times: {escape(text)}</li>" for text, count in failed.items())
    return f'<div class="failed"><p>{sum(failed.values())} failed:</p><ul>{items}</ul></div>'


def _table(measures: dict[str, dict[str, Any]]) -> str:
    names = list(next(iter(measures.values())))
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(
        f"<tr><td>{measure}, {NAMES[measure]}</td>"
        + "".join(f"<td>{'-' if told[name] is None else f'{told[name]:g} ms'}</td>" for name in names)
        + "</tr>"
        for measure, told in measures.items()
    )
    return f"<table><tr><th></th>{head}</tr>{rows}</table>"


def _plot(name: str, values: Sequence[float]) -> str:
    """The share of requests (up) that took at most so long (across). values: in ms, ascending."""
    most = values[-1] or 1.0

    def across(value: float) -> float:
        return MARGIN + value / most * (WIDTH - 2 * MARGIN)

    def up(share: float) -> float:
        return HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN)

    points = [(across(0.0), up(0.0))]
    for place, value in enumerate(values):
        points += [(across(value), points[-1][1]), (across(value), up((place + 1) / len(values)))]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    marks = "".join(
        f'<text x="{across(most * share):.1f}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">'
        f"{most * share:.3g}</text>"
        f'<text x="{MARGIN - 6}" y="{up(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
        f'<line class="axis" x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{up(share):.1f}" y2="{up(share):.1f}"/>'
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    title = f"{name}, {NAMES[name]}: share of requests within so many ms"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{title}">'
        f'<text x="{MARGIN}" y="20">{title}</text>{marks}'
        f'<polyline fill="none" stroke="{COLOURS[name]}" stroke-width="2" points="{line}"/></svg>'
    )
