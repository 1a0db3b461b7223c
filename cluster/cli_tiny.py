"""`shoal make-tiny`.

Knows nothing of what a checkpoint holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from cluster.cli_console import AsJson, console, fail, tell

if TYPE_CHECKING:
    from model.config import ModelConfig


def make_tiny(
    directory: Annotated[Path, typer.Argument(help="Where to write; must not hold a checkpoint yet.")],
    preset: Annotated[str, typer.Option(help="test, laptop, bench or peers.")] = "laptop",
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    true_width: Annotated[
        bool,
        typer.Option("--true-width", help="Instead of a preset: widths of DeepSeek-V3.2, FP8."),
    ] = False,
    layers: Annotated[
        int, typer.Option(help="With --true-width: one dense layer, the rest MoE.", min=1, max=61)
    ] = 5,
    mtp: Annotated[
        bool, typer.Option("--mtp/--no-mtp", help="With --true-width: a layer more, which drafts.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a seeded random checkpoint of V3.2 shape with a byte-level tokenizer."""
    from cluster.random_model import write_checkpoint

    if (directory / "config.json").exists():
        fail(f"{directory} already holds a checkpoint; choose another directory or remove it")
    try:
        config = (
            _write_true_width(directory, layers=layers, mtp=mtp, seed=seed)
            if true_width
            else write_checkpoint(directory, preset, seed)
        )
    except (ValueError, OSError) as error:
        fail(str(error))
    size = sum(file.stat().st_size for file in directory.iterdir())
    layers, experts = config.num_layers, config.num_experts
    if as_json:
        tell({"directory": str(directory), "layers": layers, "experts": experts, "bytes": size})
    else:
        console.print(f"{directory}: {layers} layers, {experts} experts, {size / 1e6:.1f} MB")


def _write_true_width(directory: Path, *, layers: int, mtp: bool, seed: int) -> ModelConfig:
    """With a bar: it takes minutes."""
    from cluster.random_model import write_true_width_checkpoint

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("")

        def show(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        return write_true_width_checkpoint(directory, layers=layers, mtp=mtp, seed=seed, progress=show)
