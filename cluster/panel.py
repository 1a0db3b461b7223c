"""What `shoal serve` shows: bars while weights load, a panel when it is ready.

The same as one JSON line for programs. Knows nothing of how a cluster is started or stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn

if TYPE_CHECKING:
    from cluster.admin import AdminServer
    from cluster.preflight import Preflight
    from cluster.running import Cluster


def ready_line(cluster: Cluster, admin: AdminServer, preflight: Preflight, seconds: float) -> dict[str, Any]:
    """For programs: where everything is."""
    return {
        "url": cluster.url,
        "model": cluster.model_name,
        "seconds": round(seconds, 1),
        "members": cluster.status()["members"],
        "cache": {
            "tokens": cluster.spec.cache_tokens,
            "bytes_per_token": preflight.cache_bytes_per_token,
        },
        "admin": {"url": admin.url, "key": admin.key},
    }


def ready_panel(cluster: Cluster, admin: AdminServer, preflight: Preflight, seconds: float) -> Panel:
    """For people: what serves, a line to copy, where to watch."""
    url, model_name = cluster.url, cluster.model_name
    tokens, per_token = cluster.spec.cache_tokens, preflight.cache_bytes_per_token
    actors = "\n".join(_describe(member) for member in cluster.status()["members"])
    body = (
        f"[bold]{url}/v1[/]   model [bold]{model_name}[/]   ready in {seconds:.1f} s\n\n{actors}\n"
        f"cache of each attention actor: {tokens:,} tokens of {per_token:,} bytes, "
        f"{tokens * per_token / 1e6:.1f} MB\n\n"
        f"curl {url}/v1/chat/completions -H 'content-type: application/json' \\\n"
        f'  -d \'{{"model": "{model_name}", "messages": [{{"role": "user", "content": "Hello"}}], '
        '"max_tokens": 32, "stream": true}\'\n\n'
        "See it live with `shoal top` in another terminal, or at\n"
        f"{admin.url}/ui#{quote(admin.key, safe='')}\n\n"
        "Ctrl-C stops everything."
    )
    return Panel(body, title="shoal", expand=False)


def _describe(member: Mapping[str, Any]) -> str:
    held = "" if member["experts"] is None else f", {member['experts']} experts per layer"
    read_mb = (member["bytes_read"] or 0) / 1e6
    return f"{member['actor_id']:<12} pid {member['pid']}{held}, {read_mb:.1f} MB, {member['checksum'][:12]}"


class Loading:
    """A bar for every actor that is reading weights."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Loading:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, status: Mapping[str, Any]) -> None:
        for member in status["members"]:
            name = member["actor_id"]
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=1.0, rate="starting")
            if member["active"]:
                self._bars.update(self._tasks[name], completed=1.0, rate="serves")
            elif member["progress"] and member["progress"][1]:
                self._bars.update(self._tasks[name], **_rate(*member["progress"]))


def _rate(bytes_read: int, bytes_total: int, seconds: float) -> dict[str, Any]:
    """Bar fields of a load under way: GB/s and the time left."""
    speed = bytes_read / max(seconds, 1e-9)
    left_s = (bytes_total - bytes_read) / max(speed, 1.0)
    text = (
        f"{bytes_read / 1e9:.2f} of {bytes_total / 1e9:.2f} GB, {speed / 1e9:.2f} GB/s, {left_s:.0f} s left"
    )
    return {"completed": bytes_read / bytes_total, "rate": text}
