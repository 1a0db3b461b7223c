"""The cluster in a terminal: what `shoal top` draws.

The snapshots of a window in, something that rich can print out. Knows nothing of where snapshots come from,
nor of keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cluster.rates import Rates, Window, counter_rates, expert_rates

HALF_BLOCK = "\u2580"  # its upper half in the ink's colour, its lower in the paper's: two layers a line
CIVIDIS = ((0, 32, 77), (49, 68, 107), (102, 105, 112), (149, 143, 120), (202, 185, 105), (255, 234, 70))
LEAST_TOP = 2.0  # load over mean at the hot end of the scale, at least
EVENTS_SHOWN = 8
ID_CHARS = 14  # of a request: the end tells them apart


def draw(window: Window) -> RenderableType:
    """Actors, experts and events."""
    now, load = window[-1], expert_rates(window)
    experts = Panel(heat_map(load, now["experts"]["first_layer"]), title="expert load", expand=False)
    return Group(_headline(now, load), actor_table(window), experts, _events(now))


def heat_map(load: Rates, first_layer: int) -> RenderableType:
    """Load over the layer's mean: a character for an expert in two layers, and the imbalance beside them."""
    if not any(map(any, load)):
        return Text("no load", style="dim")
    heat = [[rate / (sum(rates) / len(rates) or 1.0) for rate in rates] for rates in load]
    top = max(LEAST_TOP, *(max(row) for row in heat))
    lines = []
    for place in range(0, len(heat), 2):
        upper, lower = heat[place], heat[place + 1] if place + 1 < len(heat) else None
        line = Text(f"{first_layer + place:>3} ")
        for expert, value in enumerate(upper):
            ink = f"rgb{colour(value / top)}"
            paper = f" on rgb{colour(lower[expert] / top)}" if lower else ""
            line.append(HALF_BLOCK, ink + paper)
        peaks = " ".join(f"{max(row):.2f}" for row in heat[place : place + 2])
        lines.append(line.append(f"  {peaks}", "dim"))
    lines.append(Text(f"    colour: 0 to {top:.1f} times the layer's mean; beside: the hottest", "dim"))
    return Group(*lines)


def actor_table(window: Window) -> Table:
    """One line for every actor."""
    table = Table(box=None, pad_edge=False)
    for name in ("actor", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("pid", "life", "rate", "run", "wait", "pages", "deaths", "mended"):
        table.add_column(name, justify="right", no_wrap=True)
    rates = {
        "attention": (counter_rates(window, "prefill_tokens", "decode_tokens"), "tokens"),
        "expert": (counter_rates(window, "pairs"), "rows"),
    }
    for actor in window[-1]["actors"]:
        stats = actor["stats"] or {}
        of_kind, unit = rates[actor["kind"]]
        state = Text(actor["state"], "green" if actor["state"] == "serves" else "red")
        recovery = "-" if actor["recovery_s"] is None else f"{actor['recovery_s']:.2f} s"
        table.add_row(
            actor["actor_id"],
            state if actor["stats"] is not None else Text("silent", "yellow"),
            *(str(actor["pid"] or "-"), str(actor["incarnation"])),
            f"{of_kind.get((actor['actor_id'], actor['incarnation']), 0.0):.0f} {unit}/s",
            *(_number(stats.get(name)) for name in ("running", "waiting", "free_pages")),
            *(str(actor["deaths"]), recovery),
        )
    return table


def request_table(ended: Sequence[Mapping[str, Any]]) -> Table:
    """One line for every choice that has ended, the newest first."""
    table = Table(box=None, pad_edge=False)
    for name in ("request", "tenant"):
        table.add_column(name, no_wrap=True)
    for name in ("prompt", "made", "queue", "first", "whole", "experts"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("end", "by"):
        table.add_column(name)
    for one in reversed(ended):
        times = (one["queue_s"], one["first_token_s"], one["whole_s"], one["experts_s"])
        table.add_row(
            *(Text(one["id"][-ID_CHARS:]), Text(one["tenant"] or "-")),
            *(str(one["prompt_tokens"]), str(one["generated_tokens"])),
            *("-" if seconds is None else f"{seconds:.3f} s" for seconds in times),
            *(one["finish"], ", then ".join(one["actors"])),
        )
    return table


def colour(share: float) -> tuple[int, int, int]:
    """Of a value between 0 and 1: cividis by six points, which the colour-blind read too."""
    place = min(1.0, max(0.0, share)) * (len(CIVIDIS) - 1)
    index = min(len(CIVIDIS) - 2, int(place))
    lower, upper = CIVIDIS[index], CIVIDIS[index + 1]
    red, green, blue = (round(a + (b - a) * (place - index)) for a, b in zip(lower, upper, strict=True))
    return red, green, blue


def _headline(now: Mapping[str, Any], load: Rates) -> RenderableType:
    state = Text("all serve", "green") if now["ready"] else Text("recovering", "bold red")
    worst = max((max(row) * len(row) / sum(row) for row in load if any(row)), default=0.0)
    return Columns(
        [
            Text.assemble("model ", (now["model"], "bold")),
            Text.assemble("at ", (now["url"], "bold")),
            Text.assemble("view ", (str(now["epoch"]), "bold")),
            Text.assemble("worst imbalance ", (f"{worst:.2f}", "bold red" if worst > LEAST_TOP else "bold")),
            state,
        ],
        padding=(0, 3),
    )


def _events(now: Mapping[str, Any]) -> RenderableType:
    lines = [
        Text.assemble((f"{now['at_s'] - event['at_s']:>6.0f} s ago  ", "dim"), event["text"])
        for event in reversed(now["events"][-EVENTS_SHOWN:])
    ]
    return Panel(Group(*lines) if lines else Text("nothing yet", "dim"), title="events", expand=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
