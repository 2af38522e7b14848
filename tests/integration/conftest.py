"""Pools for the tests of this folder, and a Django site."""

from tests.support.aio import make_any_async_pool, make_async_pool
from tests.support.blocks import db, told
from tests.support.pools import app, make_any_pool, make_pool
from tests.support.site import django_site, site

__all__ = [
    "app",
    "db",
    "django_site",
    "make_any_async_pool",
    "make_any_pool",
    "make_async_pool",
    "make_pool",
    "site",
    "told",
]
