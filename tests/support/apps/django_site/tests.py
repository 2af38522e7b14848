"""The site's own tests, for Django's test runner."""

from __future__ import annotations

import urllib.request

from django.db import connection, transaction
from django.test import LiveServerTestCase, TestCase, TransactionTestCase

from .models import Account


class RolledBackTest(TestCase):  # type: ignore[misc]  # Django has no types
    """A test in a transaction."""

    @classmethod
    def setUpTestData(cls) -> None:
        """Make what both tests have."""
        Account.objects.create(owner="all")

    def test_one(self) -> None:
        """See what was made, and nothing of the other test."""
        Account.objects.create(owner="mine")
        assert Account.objects.count() == 2

    test_two = test_one

    def test_on_commit(self) -> None:
        """Have what waits for a commit called."""
        done: list[int] = []
        with self.captureOnCommitCallbacks(execute=True):
            transaction.on_commit(lambda: done.append(1))
        assert done == [1]


class CommittedTest(TransactionTestCase):  # type: ignore[misc]
    """A test that commits, after which the tables are emptied."""

    def test_one(self) -> None:
        """See nothing of the other tests, and the test database."""
        Account.objects.create(owner="mine")
        connection.close()
        assert Account.objects.count() == 1
        assert "test_" in connection.settings_dict["NAME"]

    test_two = test_one


class LiveTest(LiveServerTestCase):  # type: ignore[misc]
    """A test with a server in threads of its own."""

    def test_one(self) -> None:
        """Have it write, and see what it wrote."""
        with urllib.request.urlopen(f"{self.live_server_url}/save?owner=live") as answer:
            assert answer.status == 200
        assert Account.objects.get().owner == "live"
