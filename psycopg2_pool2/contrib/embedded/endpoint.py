"""An address where clients find a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, TypeVar

from psycopg2.extensions import make_dsn

from .credentials import passfile, password

E = TypeVar("E", bound="Endpoint")


class Endpoint(ABC):
    """What clients connect to as `postgres`; as a context manager it is closed at the end."""

    host: str
    port: int

    def __enter__(self: E) -> E:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def params(self) -> dict[str, Any]:
        """Arguments for `psycopg2.connect`. They name the file that holds the password."""
        return {
            "host": self.host,
            "port": self.port,
            "user": "postgres",
            "dbname": "postgres",
            "passfile": str(passfile()),
        }

    @property
    def password(self) -> str:
        """The password itself. It takes precedence over PGPASSWORD, which the file does not."""
        return password()

    @property
    def dsn(self) -> str:
        """The same as a connection string."""
        return str(make_dsn(**self.params))

    @abstractmethod
    def close(self) -> None:
        """End it for good; harmless when repeated."""
