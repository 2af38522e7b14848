"""What is raised."""

from __future__ import annotations


class EmbeddedServerError(RuntimeError):
    """A server did not do what it was told; the text quotes its log."""


class EmbeddedServerMissing(EmbeddedServerError):
    """The wheel with the PostgreSQL binaries is not installed."""
