"""`shoal serve`.

From flags to a running cluster, until Ctrl-C. Knows nothing of how a cluster is started.
"""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from cluster.cli_console import INTERRUPTED, AsJson, console, fail, tell
from cluster.environment import environment_for
from cluster.panel import Loading, ready_line, ready_panel
from cluster.port import check_port
from cluster.spec import ShoalSpec, SpecError, admin_key

if TYPE_CHECKING:
    from cluster.preflight import Preflight
    from cluster.running import Cluster
    from ingress.keys import KeyRing

STATUS_EVERY_S = 1.0


def serve(
    model: Annotated[
        str | None,
        typer.Argument(help="Checkpoint directory, or random:LAYERS on cuda; none: the embedded model."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with the same fields.")] = None,
    served_model_name: Annotated[str | None, typer.Option(help="Name in /v1/models.")] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="Another name that requests may call it by; again for more.")
    ] = None,
    attention: Annotated[int | None, typer.Option(help="Attention actors [default: 1].")] = None,
    experts: Annotated[
        int | None, typer.Option(help="Expert actors; 0 keeps experts in the attention actors [default: 2].")
    ] = None,
    replicas_per_expert: Annotated[
        int | None, typer.Option(help="Copies of each expert [default: 1].")
    ] = None,
    redundant_slots: Annotated[
        int | None, typer.Option(help="More copies of each layer's hottest experts [default: 0].")
    ] = None,
    rebalance_s: Annotated[
        float | None,
        typer.Option(help="Seconds between looks at the experts' balance; 0: never [default: 30]."),
    ] = None,
    autoscale: Annotated[
        list[str] | None, typer.Option(help="experts=2-6 or attention=1-3: how many there may be.")
    ] = None,
    standbys: Annotated[
        int | None, typer.Option(help="Processes that wait to take the place of what dies [default: 1].")
    ] = None,
    weights_from: Annotated[
        str | None,
        typer.Option(help="Asked first for experts that others hold: files or peers [default: files]."),
    ] = None,
    ingress: Annotated[int | None, typer.Option(help="Ingress replicas [default: 1].")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, or cuda: all of the model on one GPU [default: cpu].")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or int8 [default: float32]; on cuda fp8.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="HTTP address [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port [default: 8000].")] = None,
    api_keys: Annotated[
        str | None, typer.Option(help="File of API keys (`shoal keys add`); read again when it changes.")
    ] = None,
    serve_without_keys: Annotated[
        bool | None,
        typer.Option("--serve-without-keys", help="Let everybody ask, on a host that is not loopback."),
    ] = None,
    admin_host: Annotated[
        str | None, typer.Option(help="Address of the live page and metrics [default: 127.0.0.1].")
    ] = None,
    admin_port: Annotated[int | None, typer.Option(help="Its port [default: any that is free].")] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join, HOST:PORT [default: a private one on this machine]."),
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
    micro_batches: Annotated[
        str | None, typer.Option(help="Of a step: 1, 2, or auto: whichever measures quicker [default: auto].")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Of an attention actor on a CPU; 2: where cores are its own [default: 1]."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve a model over the OpenAI API until Ctrl-C."""
    flags = {
        "model": model,
        "served_model_name": served_model_name,
        "aliases": alias or None,
        "attention": attention,
        "experts": experts,
        "replicas_per_expert": replicas_per_expert,
        "redundant_slots": redundant_slots,
        "rebalance_s": rebalance_s,
        "autoscale": dict(one.partition("=")[::2] for one in autoscale) if autoscale else None,
        "standbys": standbys,
        "weights_from": weights_from,
        "ingress": ingress,
        "device": device,
        "dtype": dtype,
        "host": host,
        "port": port,
        "api_keys": api_keys,
        "serve_without_keys": serve_without_keys,
        "admin_host": admin_host,
        "admin_port": admin_port,
        "address": address,
        "context_tokens": context_tokens,
        "cache_tokens": cache_tokens,
        "max_queue_s": max_queue_s,
        "draft_tokens": draft_tokens,
        "prefix_cache": prefix_cache,
        "threads": threads,
        "micro_batches": {"1": 1, "2": 2}.get(micro_batches or "", micro_batches),
    }
    try:
        spec = ShoalSpec.from_sources(config, flags)
        with environment_for(spec):
            _serve(spec, as_json)
    except SpecError as error:
        fail(str(error))


def _serve(spec: ShoalSpec, as_json: bool) -> None:
    # Imported late: a wrong flag should not wait for torch, and Ray reads its environment at import.
    started_s = time.monotonic()
    stop = threading.Event()
    _on_signals(lambda *_: _interrupt(stop))
    preflight = _examine(spec)
    try:
        from cluster.admin import AdminServer
        from cluster.beacon import lit
        from cluster.front import key_ring
        from cluster.launch import begin, bring_up, shut_down
        from cluster.ray_node import LaunchError

        try:
            with console.status("starting ..."):
                cluster = begin(spec, preflight)
        except (LaunchError, ValueError) as error:
            fail(str(error))
        _on_signals(lambda *_: _interrupt(stop))  # again: starting Ray installs handlers of its own
    except KeyboardInterrupt:
        fail(INTERRUPTED)
    admin, is_ready, failure = None, False, None
    try:
        admin = AdminServer(cluster, spec.admin_host, spec.admin_port, admin_key())
        with lit(admin.url, admin.key):
            with Loading(console) as loading:
                bring_up(cluster, preflight, loading.show)
            is_ready = True
            seconds = time.monotonic() - started_s
            if as_json:
                tell(ready_line(cluster, admin, preflight, seconds))
            else:
                console.print(ready_panel(cluster, admin, preflight, seconds))
            _watch(cluster, stop, key_ring(spec.api_keys))
    except KeyboardInterrupt:
        left = f"interrupted before it was ready; what it began at {spec.address} goes on"
        failure = None if is_ready else left if spec.address else INTERRUPTED
    except (LaunchError, OSError) as error:
        failure = str(error)
    finally:
        _on_signals(signal.SIG_IGN)  # a second Ctrl-C must not leave half of it running
        with console.status("stopping ..."):
            if admin is not None:
                admin.close()
            shut_down(cluster)
    if failure:
        fail(failure)
    console.print("stopped" if spec.address is None else f"left; the cluster at {spec.address} serves on")


def _examine(spec: ShoalSpec) -> Preflight:
    """Before Ray is imported: a taken port or a bad checkpoint should not wait for that."""
    try:
        with console.status("reading the checkpoint ..."):
            if spec.address is None:  # else the clients' address and the actors' are of other nodes
                check_port(spec.host, spec.port)
                check_port(spec.data_host, 0, "data_port")
            check_port(spec.admin_host, spec.admin_port, "admin_port")
            from cluster.preflight import examine

            return examine(spec)
    except KeyboardInterrupt:
        fail(INTERRUPTED)
    except ValueError as error:
        fail(str(error))


def _on_signals(handler: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _interrupt(stop: threading.Event) -> NoReturn:
    stop.set()
    raise KeyboardInterrupt


def _watch(cluster: Cluster, stop: threading.Event, keys: KeyRing | None) -> None:
    """Print what happens until told to stop."""
    shown_s = time.monotonic()
    while not stop.wait(STATUS_EVERY_S):
        news = keys.refresh() if keys is not None else None  # as every ingress sees it
        if news is not None:
            console.print(f"[yellow]API keys[/] {news}", highlight=False)
        for when_s, event in cluster.events_after(shown_s):
            console.print(f"[yellow]event[/] {event}")
            shown_s = when_s
