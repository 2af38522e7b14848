"""The backend: Django's for PostgreSQL, with connections that are borrowed and returned."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import psycopg2
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, ProgrammingError, connections
from django.db.backends.base.base import NO_DB_ALIAS, BaseDatabaseWrapper
from django.db.backends.postgresql import base as postgresql
from django.db.backends.postgresql.psycopg_any import IsolationLevel

from ...errors import PoolError
from ...handles import unwrapped
from ...pool import ConnectionPool
from .pools import alias_pool, preparation


class DatabaseWrapper(postgresql.DatabaseWrapper):  # type: ignore[misc]  # Django has no types
    """Django's wrapper: ``connect()`` borrows its connection and ``close()`` returns it.

    As always in Django each thread has one for each alias; the pool of an alias
    is shared by all of them.
    """

    connection: Any
    _lender: ConnectionPool | None = None  # of the connection

    # Django 5.1 has a pool of psycopg's under these two names.

    @property
    def pool(self) -> ConnectionPool | None:
        """The pool of this alias, made if need be; None where ``OPTIONS["pool"]`` is False."""
        if self._lender is not None:
            return self._lender
        return self._find_pool(self.get_connection_params())

    def close_pool(self) -> None:
        """Close the pool of this alias; what is in use is closed when it comes back."""
        alias_pool(self.alias).close()

    def _find_pool(self, connect: Mapping[str, Any]) -> ConnectionPool | None:
        arguments = self._pool_arguments()
        if arguments is None:
            return None
        settings = self.settings_dict
        if settings["CONN_MAX_AGE"] != 0:
            raise self._misconfigured(
                "CONN_MAX_AGE must be 0: it is the pool that keeps connections"
            )
        try:
            prepare = preparation(
                self._isolation_level(),
                settings["AUTOCOMMIT"],
                settings["OPTIONS"].get("assume_role"),
                arguments.get("configure"),
            )
            wanted = {**connect, "configure": prepare}
            return alias_pool(self.alias).get(wanted, {"name": self.alias, **arguments})
        except (TypeError, ValueError, psycopg2.ProgrammingError) as error:
            raise self._misconfigured(str(error)) from error

    def _pool_arguments(self) -> Mapping[str, Any] | None:
        arguments = self.settings_dict["OPTIONS"].get("pool", True)
        if self.alias == NO_DB_ALIAS or arguments is False:
            return None
        if arguments is True:
            return {}
        if not isinstance(arguments, Mapping):
            raise self._misconfigured('OPTIONS["pool"] must be a dict of arguments, True or False')
        return arguments

    def _isolation_level(self) -> Any:
        level = self.settings_dict["OPTIONS"].get("isolation_level")
        return None if level is None else IsolationLevel(level)

    def _misconfigured(self, what: str) -> ImproperlyConfigured:
        return ImproperlyConfigured(f"DATABASES[{self.alias!r}]: {what}")

    # -- what Django calls ---------------------------------------------------

    def get_connection_params(self) -> dict[str, Any]:
        """Return psycopg2's arguments."""
        # Without the pool's: Django refuses them for psycopg2.
        options = {k: v for k, v in self.settings_dict["OPTIONS"].items() if k != "pool"}
        plain = copy.copy(self)
        plain.settings_dict = {**self.settings_dict, "OPTIONS": options}
        params: dict[str, Any] = super(DatabaseWrapper, plain).get_connection_params()
        return params

    def connect(self) -> None:
        """Borrow a connection, but for a transaction whose own was closed."""
        if self.in_atomic_block and self.closed_in_transaction:  # Django looks from 5.1 on
            raise ProgrammingError("Cannot open a new connection in an atomic block.")
        super().connect()

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Borrow a connection; open one where there is no pool.

        Raises Django's OperationalError where the pool has none to lend: not
        all of the pool's errors are psycopg2's.
        """
        self._lender = None
        pool = self._find_pool(conn_params)
        if pool is None:
            return super().get_new_connection(conn_params)
        try:
            connection = unwrapped(pool.getconn())
        except PoolError as error:
            raise OperationalError(*error.args) from error
        self._lender = pool
        return connection

    def init_connection_state(self) -> None:
        """Set what the session has to have at every loan; costs nothing if it has it."""
        if self._lender is None:
            super().init_connection_state()
            return
        # Past Django's own, which sets the role every time. It is set already.
        BaseDatabaseWrapper.init_connection_state(self)
        if self.ensure_timezone() and not self.get_autocommit():
            self.connection.commit()

    def ensure_timezone(self) -> bool:
        """Set the session's time zone; tell whether it was another."""
        # At every loan: datetimes are read wrongly with one that the last borrower left behind.
        if self.connection is None or not self.timezone_name:
            return False
        if self.connection.info.parameter_status("TimeZone") == self.timezone_name:
            return False
        with self.connection.cursor() as cursor:
            cursor.execute(self.ops.set_time_zone_sql(), [self.timezone_name])
        return True

    def is_usable(self) -> bool:
        """Tell whether there is a connection that answers."""
        return self.connection is not None and super().is_usable()  # Django looks from 5.1 on

    def close_if_health_check_failed(self) -> None:
        """Do nothing: the pool tests what it lends."""
        if self._pool_arguments() is None:
            super().close_if_health_check_failed()

    def _close(self) -> None:
        if self._lender is None:
            super()._close()
            return
        lender, connection = self._lender, self.connection
        # First: Django keeps what was closed inside `atomic`, but this may be lent to another.
        self._forget()
        with self.wrap_database_errors:
            lender.putconn(connection)

    def _forget(self) -> None:
        if self._lender is not None:
            self._lender = self.connection = None

    def _nodb_cursor(self) -> AbstractContextManager[Any]:
        """Close the pool first: a database with sessions is neither dropped nor copied."""
        self.close_pool()
        cursor: AbstractContextManager[Any] = super()._nodb_cursor()
        return cursor


def _after_fork_in_child() -> None:
    """Have the child borrow connections of its own, but for what it is in the middle of."""
    for wrapper in connections.all(initialized_only=True):
        if isinstance(wrapper, DatabaseWrapper) and not wrapper.in_atomic_block:
            wrapper._forget()


# After the pools' own, which makes sure that what is forgotten here is not closed for the parent.
os.register_at_fork(after_in_child=_after_fork_in_child)
