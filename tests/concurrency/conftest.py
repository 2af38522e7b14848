"""Pools for the tests of this folder."""

from tests.support.aio import make_any_async_pool, make_async_pool
from tests.support.pools import app, make_any_pool, make_pool

__all__ = ["app", "make_any_async_pool", "make_any_pool", "make_async_pool", "make_pool"]
