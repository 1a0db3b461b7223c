"""The cluster in a terminal: what `shoal top` draws.

Two snapshots in, something that rich can print out; rates are what lies between them. Knows nothing of where
snapshots come from, nor of keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

HALF_BLOCK = "\u2580"  # its upper half in the ink's colour, its lower in the paper's: two layers a line
CIVIDIS = ((0, 32, 77), (49, 68, 107), (102, 105, 112), (149, 143, 120), (202, 185, 105), (255, 234, 70))
LEAST_TOP = 2.0  # load over mean at the hot end of the scale, at least
EVENTS_SHOWN = 8

Rates = Sequence[Sequence[float]]


def draw(now: Mapping[str, Any], before: Mapping[str, Any]) -> RenderableType:
    """Actors, experts and events; before: an earlier snapshot, or the same one where there is no other."""
    load = expert_rates(now, before)
    experts = Panel(heat_map(load, now["experts"]["first_layer"]), title="expert load", expand=False)
    return Group(_headline(now, before, load), actor_table(now, before), experts, _events(now))


def expert_rates(now: Mapping[str, Any], before: Mapping[str, Any]) -> Rates:
    """[L][E] pairs (token, expert) per second; a counter that began anew counts from nothing."""
    seconds = _seconds(now, before)
    old = before["experts"]["pairs"]
    return [
        [_rise(count, _at(old, layer, expert)) / seconds for expert, count in enumerate(counts)]
        for layer, counts in enumerate(now["experts"]["pairs"])
    ]


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


def actor_table(now: Mapping[str, Any], before: Mapping[str, Any]) -> Table:
    """One line for every actor."""
    table = Table(box=None, pad_edge=False)
    for name in ("actor", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("pid", "life", "rate", "run", "wait", "pages", "deaths", "mended"):
        table.add_column(name, justify="right", no_wrap=True)
    lives = {(actor["actor_id"], actor["pid"]): actor["stats"] for actor in before["actors"]}
    for actor in now["actors"]:
        stats, old = actor["stats"] or {}, lives.get((actor["actor_id"], actor["pid"])) or {}
        counters = ("prefill_tokens", "decode_tokens") if actor["kind"] == "attention" else ("pairs",)
        rise = sum(_rise(stats.get(name, 0.0), old.get(name, 0.0)) for name in counters)
        unit = "tokens" if actor["kind"] == "attention" else "rows"
        state = Text(actor["state"], "green" if actor["state"] == "serves" else "red")
        recovery = "-" if actor["recovery_s"] is None else f"{actor['recovery_s']:.2f} s"
        table.add_row(
            actor["actor_id"],
            state if actor["stats"] is not None else Text("silent", "yellow"),
            *(str(actor["pid"] or "-"), str(actor["incarnation"])),
            f"{rise / _seconds(now, before):.0f} {unit}/s",
            *(_number(stats.get(name)) for name in ("running", "waiting", "free_pages")),
            *(str(actor["deaths"]), recovery),
        )
    return table


def colour(share: float) -> tuple[int, int, int]:
    """Of a value between 0 and 1: cividis by six points, which the colour-blind read too."""
    place = min(1.0, max(0.0, share)) * (len(CIVIDIS) - 1)
    index = min(len(CIVIDIS) - 2, int(place))
    lower, upper = CIVIDIS[index], CIVIDIS[index + 1]
    red, green, blue = (round(a + (b - a) * (place - index)) for a, b in zip(lower, upper, strict=True))
    return red, green, blue


def _headline(now: Mapping[str, Any], before: Mapping[str, Any], load: Rates) -> RenderableType:
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


def _seconds(now: Mapping[str, Any], before: Mapping[str, Any]) -> float:
    return max(1e-3, float(now["at_s"] - before["at_s"]))


def _rise(now: float, before: float) -> float:
    """Of a counter; one that began anew has not gone down."""
    return max(now - before, 0.0)


def _at(counts: Sequence[Sequence[int]], layer: int, expert: int) -> int:
    return counts[layer][expert] if layer < len(counts) else 0


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
