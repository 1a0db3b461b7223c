"""Sections about the model and its training.

From the runs and the checkpoint; a run that is missing is named where it would have stood. Knows nothing of
the endpoint.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from bench.plots import lines
from demo.figures import bars
from demo.report_page import Inputs, Section
from demo.runs import Curves, Run, TopkPoint

MAIN = "main"
# Four shorter runs: trained as the embedded model is, and with one difference each.
BASE, BF16, NO_BIAS, DENSE = "fp8", "bf16", "nobias", "dense"
WITHIN = 0.01
LEAST_ACCEPTANCE = 0.7
DIMENSIONS = (
    "hidden_size",
    "num_hidden_layers",
    "first_k_dense_replace",
    "num_nextn_predict_layers",
    "n_routed_experts",
    "n_group",
    "topk_group",
    "num_experts_per_tok",
    "n_shared_experts",
    "num_attention_heads",
    "q_lora_rank",
    "kv_lora_rank",
    "index_n_heads",
    "index_topk",
    "vocab_size",
    "max_position_embeddings",
)


def model(section: Section, inputs: Inputs) -> None:
    record, config = inputs.record(), inputs.config()
    section.say(
        f"{record.parameters:,} parameters in {record.bytes:,} bytes, made by `{record.command}` "
        f"with seed {record.seed}."
    )
    known = [(name, str(config.values[name])) for name in DIMENSIONS if name in config.values]
    section.table(("config.json", ""), known)
    section.table(("file", "sha256"), sorted(record.sha256.items()))
    changed = [name for name, digest in record.sha256.items() if _sha256(inputs.checkpoint / name) != digest]
    if changed:
        section.bad(f"{', '.join(changed)}: not the file whose hash was recorded.")
    else:
        section.say("The files beside this page have these hashes.")


def training(section: Section, inputs: Inputs) -> None:
    run, curves = inputs.run(MAIN), inputs.curves(MAIN)
    section.say(
        f"`{run.command}`, seed {run.seed}: {run.steps:,} steps, {run.tokens:,} tokens "
        f"in {run.seconds:.0f} s on {run.device}."
    )
    names = {
        "loss": "next token",
        "answer_loss": "next token, answers",
        "mtp_loss": "MTP",
        "index_kl": "indexer, KL",
    }
    path = section.plot("training", "Losses over training")
    shown = {
        name: tokens_line(curves, column)
        for column, name in names.items()
        if not all(map(math.isnan, curves[column]))
    }
    lines(path, "Losses over training", shown, axes=("million tokens", "loss, nats"), log="y")
    final = run.final
    if final.learned:
        path = section.plot("learned", "Held-out answers exact to the token, over training")
        million = [one["step"] * run.tokens / run.steps / 1e6 for one in final.learned]
        learned = {name: (million, [100 * one[name] for one in final.learned]) for name in final.tasks}
        lines(path, "Held-out answers exact to the token", learned, axes=("million tokens", "%"))
    section.say(
        f"At the end: loss {final.loss:.4f}, MTP loss {final.mtp_loss:.4f}; "
        f"on held-out samples {final.validation_loss:.4f}."
    )
    section.table(
        ("task", "held-out loss", "tokens right", "answers exact, held out", "answers exact, trained kinds"),
        [
            (
                name,
                f"{one.loss:.4f}",
                f"{100 * one.accuracy:.1f} %",
                str(final.exact_match.get(name, "not asked")),
                str(final.exact_match_familiar.get(name, "not asked")),
            )
            for name, one in final.tasks.items()
        ],
    )


def sparse_attention(section: Section, inputs: Inputs) -> None:
    run = inputs.run(MAIN)
    points = sorted(run.final.topk_sweep, key=lambda point: point.topk or math.inf)
    section.say("The same weights read with other values of index_topk; dense attends to every past token.")
    section.table(
        ("index_topk", "perplexity", "needles found"),
        [
            (str(one.topk or "dense"), f"{one.perplexity:.4f}", f"{100 * one.needle_accuracy:.1f} %")
            for one in points
        ],
    )
    _sweep_plot(section, points, "perplexity", "Perplexity against index_topk")
    _sweep_plot(section, points, "needle_accuracy", "Needle accuracy against index_topk")
    topk = section.unless_missing(inputs.index_topk)
    by_topk = {one.topk: one for one in points}
    if topk in by_topk and 0 in by_topk:
        _within(
            section,
            f"perplexity at index_topk {topk} to that of the same weights with dense attention",
            by_topk[topk].perplexity,
            by_topk[0].perplexity,
        )
    else:
        section.bad(f"the sweep has no point at index_topk {topk}, or none with dense attention: no verdict.")
    base, dense = (section.unless_missing(partial(inputs.run, name)) for name in (BASE, DENSE))
    if base is not None and dense is not None:
        ours, theirs = (math.exp(one.final.validation_loss) for one in (base, dense))
        _within(section, "perplexity to that of a model trained with dense attention", ours, theirs)
        _same_conditions(section, base, dense)


def precision(section: Section, inputs: Inputs) -> None:
    fp8, bf16 = inputs.run(BASE), inputs.run(BF16)
    _same_conditions(section, fp8, bf16)
    curves = {
        name: section.unless_missing(partial(inputs.curves, run))
        for name, run in (("FP8", BASE), ("BF16", BF16))
    }
    shown = {name: tokens_line(one, "loss") for name, one in curves.items() if one is not None}
    if shown:
        path = section.plot("fp8", "Loss in FP8 and in BF16")
        lines(path, "Loss in FP8 and in BF16", shown, axes=("million tokens", "loss, nats"), log="y")
    rows = [("loss", fp8.final.loss, bf16.final.loss)]
    rows.append(("held-out loss", fp8.final.validation_loss, bf16.final.validation_loss))
    both = [name for name in fp8.final.tasks if name in bf16.final.tasks]
    rows += [
        (f"tokens right, {name}", fp8.final.tasks[name].accuracy, bf16.final.tasks[name].accuracy)
        for name in both
    ]
    section.table(("at the end", "FP8", "BF16"), [(name, f"{a:.4f}", f"{b:.4f}") for name, a, b in rows])
    _within(section, "final loss in FP8 to that in BF16", fp8.final.loss, bf16.final.loss)
    _within(section, "held-out loss in FP8 to that in BF16", *rows[1][1:])


def prediction(section: Section, inputs: Inputs) -> None:
    accepted = {name: one.mtp_acceptance for name, one in inputs.run(MAIN).final.tasks.items()}
    if not accepted:
        section.say("Not measured: MTP acceptance.")
        return
    section.say(
        "Share of held-out answer tokens that the MTP layer proposes as the model itself would write them."
    )
    path = section.plot("mtp", "MTP acceptance by task")
    bars(path, "MTP: proposals accepted, %", {k: 100 * v for k, v in accepted.items()}, y_label="%", goal=70)
    mean = sum(accepted.values()) / len(accepted)
    section.goal(
        "MTP acceptance, mean of the tasks",
        wanted=f">= {100 * LEAST_ACCEPTANCE:.0f} %",
        got=f"{100 * mean:.1f} %",
        is_reached=mean >= LEAST_ACCEPTANCE,
    )
    low = [f"{name} {100 * one:.1f} %" for name, one in accepted.items() if one < LEAST_ACCEPTANCE]
    if low:
        section.bad(f"below the goal: {', '.join(low)}.")


def tokens_line(curves: Curves, column: str) -> tuple[list[float], Sequence[float]]:
    """A column against millions of tokens, to be drawn."""
    return [tokens / 1e6 for tokens in curves["tokens"]], curves[column]


def _sweep_plot(section: Section, points: Iterable[TopkPoint], field: str, title: str) -> None:
    sparse = [(one.topk, getattr(one, field)) for one in points if one.topk]
    dense = [getattr(one, field) for one in points if not one.topk]
    if not sparse:
        return
    topks, values = [topk for topk, _ in sparse], [value for _, value in sparse]
    curves = {"DSA": (topks, values)}
    if dense:
        curves["dense"] = (topks, dense[:1] * len(topks))
    path = section.plot(f"dsa-{field.replace('_', '-')}", title)
    lines(path, title, curves, axes=("index_topk", field.replace("_", " ")), log="x")


def _within(section: Section, what: str, ours: float, theirs: float) -> None:
    """The goal that a loss is at most 1 % above another; better is well."""
    more = ours / theirs - 1
    got = f"{ours:.4f} against {theirs:.4f} ({100 * more:+.2f} %)"
    section.goal(what, wanted="at most 1 % more", got=got, is_reached=more <= WITHIN)


def _same_conditions(section: Section, one: Run, other: Run) -> None:
    differ = [name for name in ("seed", "steps", "tokens") if getattr(one, name) != getattr(other, name)]
    if differ:
        section.bad(
            f"runs {one.name} and {other.name} differ in {', '.join(differ)}: the comparison is not fair."
        )
    else:
        section.say(
            f"Runs {one.name} and {other.name}: the same seed ({one.seed}) and {one.tokens:,} tokens."
        )
    for run in (one, other):
        if run.remark:
            section.say(f"Run {run.name}: {run.remark}.")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
