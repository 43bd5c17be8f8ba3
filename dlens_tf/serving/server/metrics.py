"""Prometheus metrics of the server, in a registry of its own."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from dlens_tf.serving.server.errors import ServingError
from dlens_tf.serving.server.models import ModelStore, ServedModel

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_PREFIX = "dlens_serving_"


class _Versions(Collector):
    """What the store reports, as it is when it is asked."""

    def __init__(self, store: ModelStore):
        self._store = store

    def collect(self) -> Iterable[GaugeMetricFamily]:
        loaded = GaugeMetricFamily(
            _PREFIX + "version_in_service",
            "1 for each version that answers.",
            labels=("model", "version"),
        )
        failed = GaugeMetricFamily(
            _PREFIX + "version_error",
            "1 for each version with an error: it could not be loaded, or its folder is gone.",
            labels=("model", "version", "code"),
        )
        for name in self._store.names():
            for status in self._store.statuses(name):
                if status.state == "AVAILABLE":
                    loaded.add_metric((name, str(status.version)), 1)
                if status.code != "OK":
                    failed.add_metric((name, str(status.version), status.code), 1)
        return loaded, failed


@dataclasses.dataclass
class Asked:
    """What a request turned out to ask; names that are not served stay empty."""

    model: str = ""
    signature: str = ""


class Metrics:
    """Counts requests and batches.

    Args:
      store: the models.
    """

    def __init__(self, store: ModelStore):
        self._registry = CollectorRegistry()
        self._registry.register(_Versions(store))
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            _PREFIX + "requests",
            "Predictions asked, by the code of the answer.",
            ("protocol", "model", "signature", "code"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            _PREFIX + "request_seconds",
            "Time from a request to its answer.",
            ("protocol", "model", "signature"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._sizes = Histogram(
            _PREFIX + "batch_size",
            "Images that went through a network together.",
            ("model", "signature"),
            buckets=_SIZES,
            registry=self._registry,
        )
        self._waiting = Gauge(
            _PREFIX + "queue_depth", "Requests that wait for a model.", registry=self._registry
        )

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Sets where the number of waiting requests is to be had."""
        self._waiting.set_function(depth)

    def observe_batch(self, model: ServedModel, signature: str, size: int) -> None:
        """Counts a batch."""
        self._sizes.labels(model.name, signature).observe(size)

    @contextlib.contextmanager
    def request(self, protocol: str) -> Iterator[Asked]:
        """Counts and times a request, which the block answers."""
        asked = Asked()
        start = time.perf_counter()
        code = "INTERNAL"
        try:
            yield asked
            code = "OK"
        except ServingError as error:
            code = error.code
            raise
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        finally:
            self._requests.labels(protocol, asked.model, asked.signature, code).inc()
            self._seconds.labels(protocol, asked.model, asked.signature).observe(
                time.perf_counter() - start
            )

    def text(self) -> bytes:
        """All metrics, as Prometheus reads them."""
        return generate_latest(self._registry)
