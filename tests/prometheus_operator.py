"""What we use of the Prometheus operator's kinds, by its reference of monitoring.coreos.com.

A reduced schema, strict about names and types: its definitions are not kept here. Knows nothing of manifests.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string", "minLength": 1}
DURATION: Schema = {"type": "string", "pattern": r"^([0-9]+(ms|[smhdwy]))+$"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def closed(*required: str, **properties: Schema) -> Schema:
    """An object of these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def many(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def resource(version: str, spec: Schema) -> Schema:
    metadata = closed("name", name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS)
    api: Schema = {"const": f"monitoring.coreos.com/{version}"}
    return closed(
        *("apiVersion", "kind", "metadata", "spec"), apiVersion=api, kind=TEXT, metadata=metadata, spec=spec
    )


AUTHORIZATION = closed(type=TEXT, credentials=closed("key", name=TEXT, key=TEXT))
ACTIONS: Schema = {"enum": ["replace", "keep", "drop", "labelmap", "labeldrop", "labelkeep"]}
RELABELINGS = many(
    closed(sourceLabels=many(TEXT), targetLabel=TEXT, replacement=TEXT, regex=TEXT, action=ACTIONS)
)
ENDPOINT = closed(
    port=TEXT, path=TEXT, interval=DURATION, authorization=AUTHORIZATION, relabelings=RELABELINGS
)
DISCOVERY = closed(
    "url",
    url={"type": "string", "pattern": "^https?://.+$"},
    refreshInterval=DURATION,
    authorization=AUTHORIZATION,
)
RULE = closed("expr", **{"alert": TEXT, "expr": TEXT, "for": DURATION}, labels=TEXTS, annotations=TEXTS)

KINDS: dict[str, Schema] = {
    "PodMonitor": resource(
        "v1",
        closed(
            *("selector", "podMetricsEndpoints"),
            selector=closed(matchLabels=TEXTS),
            podMetricsEndpoints=many(ENDPOINT),
        ),
    ),
    "ScrapeConfig": resource(
        "v1alpha1",
        closed(
            jobName=TEXT,
            scrapeInterval=DURATION,
            httpSDConfigs=many(DISCOVERY),
            relabelings=RELABELINGS,
        ),
    ),
    "PrometheusRule": resource("v1", closed(groups=many(closed("name", name=TEXT, rules=many(RULE))))),
}
