"""A Django database backend whose connections come from a pool.

``"ENGINE": "psycopg2_pool2.contrib.django"`` is Django's own PostgreSQL backend
on psycopg2, with a :class:`~psycopg2_pool2.ConnectionPool` for each alias.  The
pool's arguments are in ``OPTIONS["pool"]``.

Django decides once a process between psycopg and psycopg2, for all of its
PostgreSQL code, when the first of it is imported: it takes psycopg where it
finds it.  Importing this package makes it take psycopg2.  Where Django has
decided otherwise already this raises
:class:`~django.core.exceptions.ImproperlyConfigured`, which says what to do.
"""

from __future__ import annotations

import sys

from django.core.exceptions import ImproperlyConfigured


def _have_django_take_psycopg2() -> None:
    """Import Django's backend as if psycopg were not installed."""
    others = {"psycopg": sys.modules["psycopg"]} if "psycopg" in sys.modules else {}
    sys.modules["psycopg"] = None  # type: ignore[assignment]  # this fails the import of it
    try:
        from django.db.backends.postgresql import psycopg_any

        if not psycopg_any.is_psycopg3:
            import django.db.backends.postgresql.base  # noqa: F401
    finally:
        del sys.modules["psycopg"]
        sys.modules.update(others)
    if psycopg_any.is_psycopg3:
        raise ImproperlyConfigured(
            "psycopg2_pool2.contrib.django needs psycopg2, but Django has chosen psycopg, which is"
            " installed too, before it came to this; django.contrib.postgres, for one, makes it"
            " choose. Uninstall psycopg, or put 'import psycopg2_pool2.contrib.django' at the top"
            " of the settings module."
        )


_have_django_take_psycopg2()
