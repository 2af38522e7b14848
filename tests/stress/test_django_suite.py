"""contrib.django passes what Django tests of databases, extensions, servers and its test runner."""

from __future__ import annotations

from tests.support.django_source import run_django_tests
from tests.support.tls import TlsServer

LABELS = (
    *("aggregation", "annotations", "asgi", "async", "backends", "basic"),
    *("bulk_create", "cache", "constraints", "contenttypes_tests", "custom_lookups", "datetimes"),
    *("db_functions", "db_utils", "dbshell", "defer", "delete", "deprecation", "expressions"),
    *("expressions_window", "fixtures", "force_insert_update", "get_or_create", "handlers"),
    *("indexes", "inspectdb", "introspection", "lookup", "migrate_signals", "migrations"),
    *("model_fields", "multiple_database", "postgres_tests", "prefetch_related", "queries"),
    *("raw_query", "requests_tests", "schema", "select_for_update", "select_related", "servers"),
    *("sessions_tests", "test_client", "test_runner", "test_utils", "timezones"),
    *("transaction_hooks", "transactions", "update", "update_only_fields", "user_commands"),
)


def test_djangos_tests_of_databases_pass(tls_server: TlsServer) -> None:
    assert run_django_tests(tls_server, *LABELS, seconds=1800) > 5000
