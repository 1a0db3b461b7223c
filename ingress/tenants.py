"""What each tenant asked for and got, for Prometheus: so many names and no more.

Whoever comes after MOST others is counted with the rest. Knows nothing of keys: a tenant is an opaque mark.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from actors.metrics import Sample

MOST = 50  # told apart by one ingress
NOBODY, OTHERS = "(no key)", "(others)"  # names that no key can have


@dataclass(slots=True)
class TenantCounts:
    """Of one tenant since birth. queue_s: of its choices that an attention actor ended."""

    requests: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    queue_s: float = 0.0


class Tenants:
    """Of one ingress since birth: the first MOST by name, all others together."""

    def __init__(self) -> None:
        self._counts: dict[str, TenantCounts] = {}

    def of(self, tenant: str) -> TenantCounts:
        """Where this tenant is counted."""
        name = tenant or NOBODY
        if name not in self._counts and len(self._counts) >= MOST:
            name = OTHERS
        return self._counts.setdefault(name, TenantCounts())

    def samples(self) -> Iterator[Sample]:
        """The metrics; read from another thread."""
        for name, counts in list(self._counts.items()):
            yield Sample("shoal_tenant_requests_total", counts.requests, (name,))
            yield Sample("shoal_tenant_refused_total", counts.refused, (name,))
            yield Sample("shoal_tenant_tokens_total", counts.prompt_tokens, (name, "prompt"))
            yield Sample("shoal_tenant_tokens_total", counts.cached_tokens, (name, "cached"))
            yield Sample("shoal_tenant_tokens_total", counts.generated_tokens, (name, "generated"))
            yield Sample("shoal_tenant_queue_seconds_total", counts.queue_s, (name,))
