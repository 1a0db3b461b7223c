"""Sections about the experts: their load, and who takes which.

From the runs; a run that is missing is named where it would have stood. Knows nothing of the endpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bench.plots import lines
from demo.figures import heat_map, histogram
from demo.report_page import Inputs, Section
from demo.report_training import BASE, MAIN, NO_BIAS, tokens_line
from demo.runs import Table

MOST_LOAD = 1.5
DEAD = 0.01  # of an even share: an expert below it is dead


def experts(section: Section, inputs: Inputs) -> None:
    runs, curves = (
        {"embedded": inputs.run(MAIN)},
        {"embedded": section.unless_missing(lambda: inputs.curves(MAIN))},
    )
    for title, name in (("bias on", BASE), ("bias off", NO_BIAS)):
        run = section.unless_missing(partial(inputs.run, name))
        if run is not None:
            runs[title], curves[title] = run, section.unless_missing(partial(inputs.curves, name))
    loads = {name: [relative(row) for row in run.final.expert_load] for name, run in runs.items()}
    section.say("Load is in units of an even share: 1 is what every expert would take if all took the same.")
    section.table(
        ("MoE layer", *(f"{name}: {what}" for name in loads for what in ("least", "most", "dead"))),
        [
            (str(layer), *(cell for rows in loads.values() for cell in _load_cells(rows, layer)))
            for layer in range(len(loads["embedded"]))
        ],
    )
    path = section.plot("expert-load", "Load of all experts of all layers")
    every = {name: [one for row in rows for one in row] for name, rows in loads.items()}
    histogram(path, "Load of all experts of all MoE layers", every, axes=("load, even = 1", "experts"))
    over_time = {
        name: tokens_line(one, "load_max_over_mean") for name, one in curves.items() if one is not None
    }
    if over_time:
        path = section.plot("expert-load-training", "Most loaded expert over training")
        title = "Most loaded expert of the worst layer"
        axes = ("million tokens", "max / mean load")
        lines(path, title, over_time, axes=axes, goal=MOST_LOAD, log="y")
    most = max(max(row) for row in loads["embedded"])
    section.goal(
        "max / mean expert load of every layer",
        wanted=f"<= {MOST_LOAD}",
        got=f"{most:.2f} in the worst",
        is_reached=most <= MOST_LOAD,
    )
    dead = sum(one < DEAD for one in every["embedded"])
    section.goal("dead experts (below 1 % of an even share)", wanted="0", got=str(dead), is_reached=dead == 0)


def routing(section: Section, inputs: Inputs) -> None:
    final = inputs.run(MAIN).final
    if final.routing_change:
        path = section.plot("routing", "Change of routing over training")
        steps, changed = zip(*final.routing_change, strict=True)
        curve = {"changed": (steps, [100 * share for share in changed])}
        lines(path, "Expert choices that changed since the point before", curve, axes=("step", "%"))
        section.say(
            f"At the last point (step {steps[-1]:,}) {100 * changed[-1]:.1f} % of the choices changed."
        )
    else:
        section.say("Not measured: how much the routing changes.")
    if not final.experts_by_task:
        section.say("Not measured: experts by task.")
        return
    rows = [
        (f"{layer} {task}", relative(table[layer]))
        for layer in range(len(final.expert_load))
        for task, table in final.experts_by_task.items()
    ]
    path = section.plot("experts-by-task", "Experts by task")
    heat_map(
        path,
        "Load by MoE layer and task, even = 1",
        [row for _, row in rows],
        rows=[name for name, _ in rows],
        columns=[str(expert) for expert in range(len(rows[0][1]))],
        axes=("expert", ""),
        limits=(0, 4),
    )
    section.say(
        "Specialisation: 0 if a task takes the experts that all take, 1 if no other task takes its own."
    )
    section.table(
        ("MoE layer", *final.experts_by_task),
        [
            (
                str(layer),
                *(f"{one:.2f}" for one in specialisation(list(final.experts_by_task.values()), layer)),
            )
            for layer in range(len(final.expert_load))
        ],
    )


def relative(row: Sequence[float]) -> list[float]:
    """Shares in units of an even share; all 0 where nothing was routed."""
    total = sum(row)
    return [len(row) * share / total if total else 0.0 for share in row]


def specialisation(tables: Sequence[Table], layer: int) -> list[float]:
    """Per task the total variation between its choice of experts and that of the other tasks' mean."""
    rows = [[share / (sum(table[layer]) or 1.0) for share in table[layer]] for table in tables]
    found = []
    for place, row in enumerate(rows):
        others = [other for rank, other in enumerate(rows) if rank != place]
        means = [sum(column) / len(others) for column in zip(*others, strict=True)] if others else row
        found.append(sum(abs(one - mean) for one, mean in zip(row, means, strict=True)) / 2)
    return found


def _load_cells(rows: Sequence[Sequence[float]], layer: int) -> tuple[str, str, str]:
    row = rows[layer]
    return f"{min(row):.2f}", f"{max(row):.2f}", str(sum(one < DEAD for one in row))
