"""What a server says of itself during a bench.

By its admin listener and its metrics. Knows nothing of load.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

PATIENCE_S = 30.0
LOOP_SECONDS, DEVICE_SECONDS = "shoal_step_seconds_total", "shoal_device_wait_seconds_total"


@dataclass(frozen=True, kw_only=True, slots=True)
class Loop:
    """Of an attention actor's step loop, since its birth."""

    steps: float
    device_s: float
    parts_s: Mapping[str, float]

    def since(self, before: Loop) -> dict[str, Any]:
        """Of what happened in between: milliseconds of a step, and the GPU's share of the loop's time."""
        steps = max(1.0, self.steps - before.steps)
        parts_s = {part: now_s - before.parts_s.get(part, 0.0) for part, now_s in self.parts_s.items()}
        busy_s = sum(seconds for part, seconds in parts_s.items() if part != "idle")
        device_s = self.device_s - before.device_s
        return {
            "steps": int(steps),
            "step_ms": round(1e3 * busy_s / steps, 3),
            "parts_ms": {part: round(1e3 * seconds / steps, 3) for part, seconds in parts_s.items()},
            "gpu_ms": round(1e3 * device_s / steps, 3),
            "host_share": round(1.0 - device_s / busy_s, 3) if busy_s else None,
        }


class Watch:
    """admin: its `url` and `key`, as the ready line tells them."""

    def __init__(self, admin: Mapping[str, str]) -> None:
        self._client = httpx.Client(
            base_url=admin["url"],
            headers={"authorization": f"Bearer {admin['key']}"},
            timeout=PATIENCE_S,
            trust_env=False,
        )

    def attention(self) -> dict[str, Any]:
        """Of the only attention actor, what the snapshot says."""
        actors = self._got("/snapshot")["actors"]
        [own] = [actor for actor in actors if actor["kind"] == "attention"]
        return dict(own)

    def loop(self) -> Loop:
        told = self.metrics()
        parts = {labels["part"]: value for labels, value in told[LOOP_SECONDS]}
        return Loop(steps=told["shoal_steps_total"][0][1], device_s=told[DEVICE_SECONDS][0][1], parts_s=parts)

    def metrics(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """By name, as Prometheus would read them of the attention actor."""
        [place] = [
            target["targets"][0]
            for target in self._got("/targets")
            if target["labels"]["role"] == "attention"
        ]
        answer = httpx.get(f"http://{place}/metrics", timeout=PATIENCE_S, trust_env=False).raise_for_status()
        found = defaultdict(list)
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                found[sample.name].append((dict(sample.labels), float(sample.value)))
        return found

    def expert_load(self) -> dict[str, Any]:
        """Whether every token was counted once in every layer, and how even the load is. Nobody may ask."""
        own, told = self.attention(), self.metrics()
        tokens = int(own["stats"]["prefill_tokens"] + own["stats"]["decode_tokens"])
        pairs = [sum(layer) for layer in own["expert_pairs"]]
        per_token = pairs[0] / tokens
        assert tokens and set(pairs) == {int(per_token) * tokens} != {0}, (tokens, pairs)
        assert [int(value) for _, value in told["shoal_expert_pairs_total"]] == pairs, "metrics differ"
        return {
            "tokens": tokens,
            "experts_per_token": int(per_token),
            "experts_without_load": [sum(count == 0 for count in layer) for layer in own["expert_pairs"]],
            "imbalance": [round(value, 2) for _, value in told["shoal_expert_imbalance"]],
            "hottest": round(max(value for _, value in told["shoal_expert_heat"]), 2),
            "late_compilations": told["shoal_late_compilations_total"][0][1],
        }

    def trace(self, steps: int) -> dict[str, Any]:
        """Milliseconds of each part, a step, of so many recorded ones."""
        answer = self._client.post("/trace", params={"steps": steps, "seconds": 5}).raise_for_status()
        spans = [event for event in answer.json()["traceEvents"] if event["ph"] == "X"]
        seen = max(1, len({span["args"]["step"] for span in spans if span["args"]["step"] > 0}))
        sums: defaultdict[str, float] = defaultdict(float)
        for span in spans:
            sums[f"{span['cat']}: {span['name']}"] += span["dur"] / 1e3 / seen
        return {"steps": seen, "ms": {name: round(value, 3) for name, value in sorted(sums.items())}}

    def kill(self) -> None:
        """SIGKILL for the attention actor."""
        self._client.post(f"/actors/{self.attention()['actor_id']}/kill").raise_for_status()

    def _got(self, path: str) -> Any:
        return self._client.get(path).raise_for_status().json()
