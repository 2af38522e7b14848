"""Real tracers, each with what it has traced at hand instead of sent somewhere.

Importing this module imports none of them: each patches the whole process.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any


class Tracer(ABC):
    """A tracer that is at work in this process."""

    proxies = True
    """Whether it puts a proxy around each connection."""
    of_drivers = True
    """Whether it traces psycopg2 itself."""
    told = "SELECT {}"
    """What it tells of a statement."""
    fits_frameworks = True
    """Whether its proxies are connections to ``psycopg2.extras.register_uuid`` and its like."""
    in_workers = True
    """Whether a statement that a worker thread executes for a task belongs to the task's trace."""

    @abstractmethod
    def trace(self) -> AbstractContextManager[Any]:
        """Return a block whose statements are one trace."""

    @abstractmethod
    def statements(self) -> list[str]:
        """Return the statements of the traces that have ended, and forget them."""


class DataDog(Tracer):
    """ddtrace, with its spans kept by a processor."""

    def __init__(self) -> None:
        os.environ.update(
            DD_INSTRUMENTATION_TELEMETRY_ENABLED="false",
            DD_REMOTE_CONFIGURATION_ENABLED="false",
            DD_TRACE_STARTUP_LOGS="false",
        )
        from ddtrace import patch
        from ddtrace.trace import TraceFilter, tracer

        spans: list[Any] = []

        class Keep(TraceFilter):
            def process_trace(self, trace: Any) -> None:
                spans.extend(trace)  # returning none of them sends none

        tracer.configure(trace_processors=[Keep()])
        patch(psycopg=True)
        self._tracer, self._spans = tracer, spans

    def trace(self) -> AbstractContextManager[Any]:
        return self._tracer.trace("request")

    def statements(self) -> list[str]:
        spans, self._spans[:] = list(self._spans), []
        return [span.resource for span in spans if span.name.startswith("postgres.")]


class NewRelic(Tracer):
    """newrelic in its developer mode, which sends nothing."""

    in_workers = False

    def __init__(self) -> None:
        os.environ.update(
            NEW_RELIC_DEVELOPER_MODE="true",
            NEW_RELIC_LICENSE_KEY="0" * 40,
            NEW_RELIC_APP_NAME="tests",
            NEW_RELIC_LOG="/dev/null",
        )
        import newrelic.agent

        newrelic.agent.initialize()
        utilization = newrelic.agent.global_settings().utilization
        for cloud in ("aws", "azure", "azurefunction", "azureappservice", "gcp", "pcf"):
            setattr(utilization, f"detect_{cloud}", False)  # which asks outside of this machine
        self._application = newrelic.agent.register_application(timeout=10)
        self._statements: list[str] = []
        _note_calls("newrelic.api.database_trace", "DatabaseTrace", self._note)

    def _note(self, trace: Any) -> None:
        if trace.transaction is not None:
            self._statements.append(trace.sql)

    def trace(self) -> AbstractContextManager[Any]:
        import newrelic.agent

        block: AbstractContextManager[Any]
        block = newrelic.agent.BackgroundTask(self._application, "request")
        return block

    def statements(self) -> list[str]:
        found, self._statements[:] = list(self._statements), []
        return found


def _note_calls(module: str, name: str, note: Callable[[Any], object]) -> None:
    """Call ``note`` with each object of a class that ends as a block."""
    import importlib

    kind = getattr(importlib.import_module(module), name)
    leave = kind.__exit__

    def noted(self: Any, *exc_info: Any) -> Any:
        note(self)
        return leave(self, *exc_info)

    kind.__exit__ = noted


class Elastic(Tracer):
    """elastic-apm, with its events kept instead of queued."""

    def __init__(self) -> None:
        import elasticapm

        statements: list[str] = []

        class Client(elasticapm.Client):
            def queue(self, event_type: str, data: Any, flush: bool = False) -> None:
                # Not the rest: it refers to the frames, and they to connections.
                if event_type == "span" and data["action"] == "query":
                    statements.append(data["context"]["db"]["statement"])

        self._client: Any = Client(
            service_name="tests",
            disable_send=True,
            central_config=False,
            metrics_interval="0s",
            cloud_provider="none",
            span_compression_enabled=False,
        )
        elasticapm.instrument()
        self._statements = statements

    def trace(self) -> AbstractContextManager[Any]:
        return _Between(
            lambda: self._client.begin_transaction("request"),
            lambda: self._client.end_transaction("request"),
        )

    def statements(self) -> list[str]:
        found, self._statements[:] = list(self._statements), []
        return found


class _Between:
    def __init__(self, begin: Callable[[], object], end: Callable[[], object]) -> None:
        self._begin, self._end = begin, end

    def __enter__(self) -> None:
        self._begin()

    def __exit__(self, *exc_info: object) -> None:
        self._end()


class XRay(Tracer):
    """aws-xray-sdk, with its segments kept; it tells no statements, only that there were some."""

    told = "execute"
    in_workers = False

    def __init__(self) -> None:
        logging.getLogger("aws_xray_sdk").setLevel(logging.CRITICAL)
        from aws_xray_sdk.core import patch, xray_recorder

        segments: list[Any] = []

        class Emitter:
            def send_entity(self, entity: Any) -> None:
                segments.append(entity)

        xray_recorder.configure(
            service="tests", sampling=False, context_missing="LOG_ERROR", emitter=Emitter()
        )
        patch(["psycopg2"])
        self._recorder, self._segments = xray_recorder, segments

    def trace(self) -> AbstractContextManager[Any]:
        block: AbstractContextManager[Any] = self._recorder.in_segment("request")
        return block

    def statements(self) -> list[str]:
        segments, self._segments[:] = list(self._segments), []
        return [part.name for segment in segments for part in segment.subsegments]


class OpenTelemetry(Tracer):
    """OpenTelemetry's instrumentor for psycopg2, which sets a cursor_factory."""

    proxies = False

    def __init__(self) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self._exporter = InMemorySpanExporter()
        self._provider = TracerProvider()
        self._provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._instrument()

    def _instrument(self) -> None:
        from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor

        Psycopg2Instrumentor().instrument(tracer_provider=self._provider)

    def trace(self) -> AbstractContextManager[Any]:
        return self._provider.get_tracer("tests").start_as_current_span("request")

    def statements(self) -> list[str]:
        spans = self._exporter.get_finished_spans()
        self._exporter.clear()
        told = [dict(span.attributes or {}).get("db.statement") for span in spans]
        return [str(statement) for statement in told if statement is not None]


class OpenTelemetryDBAPI(OpenTelemetry):
    """OpenTelemetry's general integration for DB-API drivers, which makes proxies."""

    proxies = True
    fits_frameworks = False

    def _instrument(self) -> None:
        import psycopg2
        from opentelemetry.instrumentation import dbapi

        driver: Any = psycopg2
        dbapi.wrap_connect("tests", driver, "connect", "postgresql", tracer_provider=self._provider)


class Sentry(Tracer):
    """sentry-sdk, which traces what SQLAlchemy and Django execute, and psycopg2 not at all."""

    proxies = False
    of_drivers = False

    def __init__(self) -> None:
        import sentry_sdk
        from sentry_sdk.integrations.django import DjangoIntegration
        from sentry_sdk.integrations.sqlalchemy import SqlalchemyIntegration

        statements: list[str] = []

        def keep(event: Any, _: Any) -> None:
            spans = [span for span in event["spans"] if span["op"] == "db"]
            statements.extend(span["description"] for span in spans)

        sentry_sdk.init(
            dsn="http://key@127.0.0.1:1/1",
            traces_sample_rate=1.0,
            before_send_transaction=keep,
            default_integrations=False,
            integrations=[DjangoIntegration(), SqlalchemyIntegration()],
        )
        self._statements = statements

    def trace(self) -> AbstractContextManager[Any]:
        import sentry_sdk

        return sentry_sdk.start_transaction(name="request")

    def statements(self) -> list[str]:
        found, self._statements[:] = list(self._statements), []
        return found


TRACERS: dict[str, type[Tracer]] = {
    "ddtrace": DataDog,
    "newrelic": NewRelic,
    "elasticapm": Elastic,
    "aws_xray_sdk": XRay,
    "opentelemetry.instrumentation.psycopg2": OpenTelemetry,
    "opentelemetry.instrumentation.dbapi": OpenTelemetryDBAPI,
    "sentry_sdk": Sentry,
}
"""By the modules that they are in."""
