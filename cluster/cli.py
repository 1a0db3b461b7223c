"""The `shoal` command.

Words for people: one line for every failure, a panel when ready. Knows nothing of how a cluster is started.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from cluster.environment import ray_environment
from cluster.panel import Loading, ready_line, ready_panel
from cluster.port import check_port
from cluster.spec import ShoalSpec, SpecError, admin_key

if TYPE_CHECKING:
    from cluster.launch import Cluster
    from cluster.preflight import Preflight

EXIT_FAILED = 1
STATUS_EVERY_S = 1.0
INTERRUPTED = "interrupted before it was ready; nothing is left running"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
dashboards = typer.Typer(no_args_is_help=True, help="Grafana boards and Prometheus alerts.")
app.add_typer(dashboards, name="dashboards")
console = Console(stderr=True, highlight=False)


@app.callback()
def shoal() -> None:
    """Serve DeepSeek-V3.2-architecture models from a Ray cluster."""


@app.command()
def serve(
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint directory; without it the embedded model is served.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with the same fields.")] = None,
    served_model_name: Annotated[str | None, typer.Option(help="Name in /v1/models.")] = None,
    attention: Annotated[int | None, typer.Option(help="Attention actors [default: 1].")] = None,
    experts: Annotated[
        int | None, typer.Option(help="Expert actors; 0 keeps experts in the attention actors [default: 2].")
    ] = None,
    replicas_per_expert: Annotated[
        int | None, typer.Option(help="Copies of each expert [default: 1].")
    ] = None,
    standbys: Annotated[
        int | None, typer.Option(help="Processes that wait to take the place of what dies [default: 1].")
    ] = None,
    ingress: Annotated[int | None, typer.Option(help="Ingress replicas [default: 1].")] = None,
    device: Annotated[str | None, typer.Option(help="cpu.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or int8 [default: float32].")] = None,
    host: Annotated[str | None, typer.Option(help="HTTP address [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port [default: 8000].")] = None,
    admin_port: Annotated[
        int | None, typer.Option(help="Port of the live page and metrics [default: any that is free].")
    ] = None,
    context_tokens: Annotated[int | None, typer.Option(help="Longest prompt + answer.")] = None,
    cache_tokens: Annotated[
        int | None, typer.Option(help="Cache per attention actor [default: 65536].")
    ] = None,
    max_queue_s: Annotated[
        float | None,
        typer.Option(help="Longest wait of an interactive request before it is refused [default: 60]."),
    ] = None,
    draft_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens drafted ahead by the MTP layer; 0: none [default: 1 if it has one]."),
    ] = None,
    prefix_cache: Annotated[
        bool | None,
        typer.Option("--prefix-cache/--no-prefix-cache", help="Keep pages of past prompts [default: on]."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ready line as JSON on stdout.")] = False,
) -> None:
    """Serve a model over the OpenAI API until Ctrl-C."""
    flags = {
        "model": model,
        "served_model_name": served_model_name,
        "attention": attention,
        "experts": experts,
        "replicas_per_expert": replicas_per_expert,
        "standbys": standbys,
        "ingress": ingress,
        "device": device,
        "dtype": dtype,
        "host": host,
        "port": port,
        "admin_port": admin_port,
        "context_tokens": context_tokens,
        "cache_tokens": cache_tokens,
        "max_queue_s": max_queue_s,
        "draft_tokens": draft_tokens,
        "prefix_cache": prefix_cache,
    }
    try:
        spec = ShoalSpec.from_sources(config, flags)
    except SpecError as error:
        _fail(str(error))
    with ray_environment():
        _serve(spec, as_json)


@app.command()
def make_tiny(
    directory: Annotated[Path, typer.Argument(help="Where to write; must not hold a checkpoint yet.")],
    preset: Annotated[str, typer.Option(help="test, laptop or bench.")] = "laptop",
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
) -> None:
    """Write a seeded random checkpoint of V3.2 shape with a byte-level tokenizer."""
    from cluster.preflight import write_checkpoint

    if (directory / "config.json").exists():
        _fail(f"{directory} already holds a checkpoint; choose another directory or remove it")
    try:
        config = write_checkpoint(directory, preset, seed)
    except (ValueError, OSError) as error:
        _fail(str(error))
    size_mb = sum(file.stat().st_size for file in directory.iterdir()) / 1e6
    console.print(f"{directory}: {config.num_layers} layers, {config.num_experts} experts, {size_mb:.1f} MB")


@app.command()
def chaos(
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint directory; default: the embedded model.")
    ] = None,
    fault: Annotated[list[str] | None, typer.Option(help="By name, several times; default: all.")] = None,
    kills: Annotated[int, typer.Option(help="SIGKILLs in a row at the end; 0: none.")] = 5,
    streams: Annotated[int, typer.Option(min=1, help="Streams that are always under way.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the questions and of who is killed.")] = 0,
    port: Annotated[int, typer.Option(help="HTTP port of the cluster that it starts.")] = 8100,
    journal: Annotated[Path | None, typer.Option(help="Directory for every event of every stream.")] = None,
    report: Annotated[Path | None, typer.Option(help="Markdown file to write the table into.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcomes as JSON on stdout.")] = False,
) -> None:
    """Start a cluster, load it, kill its processes, and check every token of every stream."""
    from cluster.reliability import as_json as in_json
    from cluster.reliability import places_of, table, write_report

    with ray_environment():
        from cluster.chaos_set import Plan, run_set
        from cluster.launch import LaunchError

        try:
            check_port("127.0.0.1", port)
            if report is not None:
                places_of(report)  # not after minutes
            plan = Plan(
                model=model,
                faults=fault or (),
                kills=kills,
                streams=streams,
                seed=seed,
                port=port,
                journal=journal,
            )
            with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # Ray tells of every death
                outcomes = run_set(plan, console)
        except KeyboardInterrupt:
            _fail(INTERRUPTED)
        except (LaunchError, ValueError) as error:
            _fail(str(error))
    if as_json:
        sys.stdout.write(in_json(outcomes) + "\n")
    else:
        console.print(table(outcomes))
    if report is not None:
        write_report(report, outcomes, plan.heading)
    if not all(outcome.is_as_promised for outcome in outcomes):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def top(
    url: Annotated[str | None, typer.Option(help="Of the admin listener; default: the one here.")] = None,
    key: Annotated[str | None, typer.Option(envvar="SHOAL_ADMIN_KEY", help="Its key.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Look for a second, print and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one snapshot as JSON on stdout.")] = False,
) -> None:
    """Watch actors, expert load and events of a running cluster."""
    from cluster.beacon import Beacon, newest
    from cluster.top import draw
    from cluster.top_app import NoAnswer, TopApp, fetch

    beacon = Beacon(url=url.rstrip("/"), key=key or "") if url else newest()
    if beacon is None:
        _fail("no cluster runs here: start one with `shoal serve`, or name its admin listener with --url")
    try:
        if as_json:
            sys.stdout.write(json.dumps(fetch(beacon)) + "\n")
        elif once or not sys.stdout.isatty():
            before = fetch(beacon)
            time.sleep(STATUS_EVERY_S)
            Console().print(draw(fetch(beacon), before))
        else:
            TopApp(beacon).run()
    except NoAnswer as error:
        _fail(str(error))


@dashboards.command()
def write(
    directory: Annotated[Path, typer.Argument(help="Where to write; what is there is overwritten.")],
    prometheus: Annotated[
        str, typer.Option(help="Prometheus as Grafana reaches it.")
    ] = "http://127.0.0.1:9090",
) -> None:
    """Write Grafana's boards, its provisioning files and Prometheus' alert rules."""
    from cluster.alerts import ALERTS
    from cluster.boards import BOARDS
    from cluster.grafana import write as write_files

    try:
        for file in write_files(directory, BOARDS, ALERTS, prometheus):
            console.print(str(file))
    except OSError as error:
        _fail(f"{directory} cannot be written: {error.strerror}")


def main() -> None:
    """The entry point of the `shoal` command."""
    app()


def _serve(spec: ShoalSpec, as_json: bool) -> None:
    # Imported late: a wrong flag should not wait for torch, and Ray reads its environment at import.
    started_s = time.monotonic()
    stop = threading.Event()
    _on_signals(lambda *_: _interrupt(stop))
    preflight = _examine(spec)
    try:
        from cluster.admin import AdminServer
        from cluster.beacon import lit
        from cluster.launch import LaunchError, launch, shut_down

        with Loading(console) as loading:
            cluster = launch(spec, preflight, loading.show)
        _on_signals(lambda *_: _interrupt(stop))  # again: starting Ray installs handlers of its own
    except KeyboardInterrupt:
        _fail(INTERRUPTED)
    except (LaunchError, ValueError) as error:
        _fail(str(error))
    admin = None
    try:
        admin = AdminServer(cluster, spec.admin_host, spec.admin_port, admin_key())
        with lit(admin.url, admin.key):
            seconds = time.monotonic() - started_s
            if as_json:
                sys.stdout.write(json.dumps(ready_line(cluster, admin, preflight, seconds)) + "\n")
                sys.stdout.flush()
            else:
                console.print(ready_panel(cluster, admin, preflight, seconds))
            _watch(cluster, stop)
    except KeyboardInterrupt:
        pass
    finally:
        _on_signals(signal.SIG_IGN)  # a second Ctrl-C must not leave half of it running
        with console.status("stopping ..."):
            if admin is not None:
                admin.close()
            shut_down(cluster)
        console.print("stopped")


def _examine(spec: ShoalSpec) -> Preflight:
    """Before Ray is imported: a taken port or a bad checkpoint should not wait for that."""
    try:
        with console.status("reading the checkpoint ..."):
            check_port(spec.host, spec.port)
            if spec.admin_port:
                check_port(spec.admin_host, spec.admin_port)
            from cluster.preflight import examine

            return examine(spec)
    except KeyboardInterrupt:
        _fail(INTERRUPTED)
    except ValueError as error:
        _fail(str(error))


def _on_signals(handler: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _interrupt(stop: threading.Event) -> NoReturn:
    stop.set()
    raise KeyboardInterrupt


def _watch(cluster: Cluster, stop: threading.Event) -> None:
    """Print what happens until told to stop."""
    shown_s = time.monotonic()
    while not stop.wait(STATUS_EVERY_S):
        for when_s, event in cluster.events_after(shown_s):
            console.print(f"[yellow]event[/] {event}")
            shown_s = when_s


def _fail(text: str) -> NoReturn:
    for line in text.splitlines():
        console.print(f"[bold red]error[/] {line}", soft_wrap=True, markup=True)
    raise typer.Exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
