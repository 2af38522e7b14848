"""An address where clients find a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, TypeVar

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
        """Arguments for `psycopg2.connect`."""
        return {"host": self.host, "port": self.port, "user": "postgres", "dbname": "postgres"}

    @property
    def dsn(self) -> str:
        """The same as a connection string."""
        return " ".join(f"{key}={value}" for key, value in self.params.items())

    @abstractmethod
    def close(self) -> None:
        """End it for good; harmless when repeated."""
