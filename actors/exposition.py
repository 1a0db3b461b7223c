"""Metrics as Prometheus reads them, over HTTP.

Every process hands a function that reads its own counters to `MetricsServer`; it is called when somebody
scrapes, so counting costs the serving loop nothing but additions. Knows nothing of what is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from socketserver import TCPServer
from threading import Thread
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, ThreadingWSGIServer, generate_latest
from prometheus_client.registry import Collector

from actors.metrics import BY_NAME, Buckets, Metric, Sample

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


def exposition(read: Callable[[], Iterable[Sample]]) -> bytes:
    """What /metrics answers: the samples and the process' memory, descriptors and processor time.

    In the plain format always: in the newer one prometheus_client spells an alias with an underscore.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(SampleCollector(read))
    return generate_latest(registry)


class MetricsServer:
    """GET /metrics on a thread of its own, until closed."""

    def __init__(self, read: Callable[[], Iterable[Sample]], host: str, port: int = 0) -> None:
        def answer(_: object, start: Callable[[str, list[tuple[str, str]]], object]) -> list[bytes]:
            body = exposition(read)
            start("200 OK", [("content-type", CONTENT_TYPE_PLAIN_0_0_4)])
            return [body]

        self._server = make_server(host, port, answer, _Server, handler_class=_Silent)
        self.port: int = self._server.server_port
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingWSGIServer):
    def server_bind(self) -> None:
        """Without asking a resolver for this host's name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Silent(WSGIRequestHandler):
    timeout = 5.0  # of a connection that says nothing

    def log_message(self, format: str, *args: object) -> None:
        """A scrape a second is no news."""


class SampleCollector(Collector):
    """Samples, in the shape that prometheus_client writes."""

    def __init__(self, read: Callable[[], Iterable[Sample]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Family]:
        grouped: dict[str, list[Sample]] = {}
        for sample in self._read():
            grouped.setdefault(sample.name, []).append(sample)
        for name, samples in grouped.items():
            metric = BY_NAME[name]
            yield _family(metric, name, samples)
            if metric.alias is not None:
                yield _family(metric, metric.alias, samples)

    def describe(self) -> list[Family]:
        """Nothing: registering asks for no values."""
        return []


def _family(metric: Metric, name: str, samples: list[Sample]) -> Family:
    if metric.kind == "histogram":
        family: Family = HistogramMetricFamily(name, metric.help, labels=metric.labels)
    elif metric.kind == "counter":
        family = CounterMetricFamily(name, metric.help, labels=metric.labels)
    else:
        family = GaugeMetricFamily(name, metric.help, labels=metric.labels)
    for sample in samples:
        if isinstance(family, HistogramMetricFamily):
            assert isinstance(sample.value, Buckets), f"{metric.name} is a histogram"
            family.add_metric(sample.labels, _cumulative(sample.value), sample.value.sum)
        else:
            assert not isinstance(sample.value, Buckets), f"{metric.name} is no histogram"
            family.add_metric(sample.labels, sample.value)
    return family


def _cumulative(value: Buckets) -> list[tuple[str, float]]:
    """(bound, how many up to it), as Prometheus wants them."""
    named, total = [], 0
    for bound, count in zip((*map(str, value.bounds), "+Inf"), value.counts, strict=True):
        total += count
        named.append((bound, float(total)))
    return named
