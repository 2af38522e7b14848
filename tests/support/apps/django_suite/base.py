"""Our backend, with a list of those of Django's tests that do not apply to it."""

from __future__ import annotations

import django
from django.db.backends.postgresql import features
from django.utils.functional import cached_property

from psycopg2_pool2.contrib.django import base

_HEALTH = "backends.base.test_base.ConnectionHealthChecksTests"
_SKIPS = {
    "With a pool CONN_MAX_AGE has to be 0.": {
        f"{_HEALTH}.test_health_checks_disabled",
        f"{_HEALTH}.test_health_checks_enabled",
        f"{_HEALTH}.test_health_checks_enabled_errors_occurred",
        f"{_HEALTH}.test_set_autocommit_health_checks_enabled",
        "servers.tests.LiveServerTestCloseConnectionTest.test_closes_connections",
    },
}
if django.VERSION >= (5, 1):
    _SKIPS["It wants what this backend is there for to be refused."] = {
        "backends.postgresql.tests.Tests.test_connect_pool_setting_ignored_for_psycopg2"
    }
else:
    _SKIPS["The message is another."] = {
        "backends.postgresql.tests.Tests.test_connect_invalid_isolation_level"
    }


class DatabaseFeatures(features.DatabaseFeatures):  # type: ignore[misc]  # Django has no types
    """Django's features, and what is skipped."""

    def _skips(self) -> dict[str, set[str]]:
        return {**super().django_test_skips, **_SKIPS}

    django_test_skips = cached_property(_skips)


class DatabaseWrapper(base.DatabaseWrapper):
    """Our backend."""

    features_class = DatabaseFeatures
