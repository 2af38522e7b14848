"""What a server is asked, and how its answers are read."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import psycopg2

from psycopg2_pool2.connector import Connection

from ..activity import read_activity
from .connections import APPLICATION, Connections, ask
from .facts import Limits, Policy, Pooler, Server, Setting, Tls

_ASK_WHO = """
SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
       current_user, current_database(),
       (SELECT CASE WHEN rolsuper THEN -1 ELSE rolconnlimit END
        FROM pg_roles WHERE rolname = current_user),
       (SELECT datconnlimit FROM pg_database WHERE datname = current_database())
"""
_ASK_SETTINGS = """
SELECT name, current_setting(name), setting, unit, source
FROM pg_settings WHERE name = ANY (%s)
"""
# What is read by name, by the policy itself or by a function that it calls.  Keywords
# are printed in capitals.
_ASK_POLICIES = r"""
WITH policy AS (
    SELECT p.oid, p.polrelid, p.polname,
           concat_ws(' ', pg_get_expr(p.polqual, p.polrelid),
                     pg_get_expr(p.polwithcheck, p.polrelid)) AS text
    FROM pg_policy AS p JOIN pg_class AS c ON c.oid = p.polrelid
    WHERE c.relrowsecurity
), called AS (
    SELECT d.objid AS oid, string_agg(f.prosrc, ' ') AS text
    FROM pg_depend AS d JOIN pg_proc AS f ON f.oid = d.refobjid
    WHERE d.classid = 'pg_policy'::regclass AND d.refclassid = 'pg_proc'::regclass
    GROUP BY d.objid
), known AS (
    SELECT polrelid, polname,
           substring(policy.text FROM
               '\m(?:current_setting|CURRENT_USER|CURRENT_ROLE|SESSION_USER|USER)\M') AS own,
           substring(lower(called.text) FROM
               '\m(?:current_setting|current_user|current_role|session_user)\M') AS others
    FROM policy LEFT JOIN called USING (oid)
)
SELECT polrelid::regclass::text, polname::text, lower(coalesce(own, others))
FROM known WHERE coalesce(own, others) IS NOT NULL ORDER BY 1, 2
"""
_LIMITS = ("max_connections", "superuser_reserved_connections", "reserved_connections")
_SETTINGS = (
    "idle_session_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
    "statement_timeout",
    "lock_timeout",
    "default_transaction_read_only",
    "client_connection_check_interval",
    "tcp_keepalives_idle",
    "tcp_keepalives_interval",
    "tcp_keepalives_count",
    "tcp_user_timeout",
    "log_connections",
    "log_disconnections",
)
"""The settings that matter to a pool, in the order in which they are shown."""
_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0}
_CONSOLE = "pgbouncer"
"""The database that PgBouncer itself answers for."""


def read_server(connections: Connections) -> Server:
    """Ask a server all that a pool's user should know."""
    conn = connections.first
    query_seconds = connections.time_query()
    [(standby, read_only, user, database, role_limit, database_limit)] = ask(conn, _ASK_WHO)
    with conn.cursor() as cursor:
        cursor.execute(_ASK_SETTINGS, [[*_LIMITS, *_SETTINGS]])
        found = {name: _setting(*rest) for name, *rest in cursor.fetchall()}
        activity = read_activity(cursor, but=APPLICATION)
        policies = _policies(cursor)
    most, superusers, reserved = (_whole(found.pop(name, None)) for name in _LIMITS)
    return Server(
        connect_seconds=connections.connect_seconds,
        query_seconds=query_seconds,
        version=conn.info.parameter_status("server_version") or "unknown",
        standby=standby,
        read_only=read_only,
        suits=connections.suits(),
        user=user,
        database=database,
        limits=Limits(most, superusers, reserved, role_limit, database_limit),
        tls=_tls(conn),
        pooler=_pooler(connections),
        activity=tuple(activity),
        settings={name: found[name] for name in _SETTINGS if name in found},
        policies=policies,
    )


def _policies(cursor: Any) -> tuple[Policy, ...]:
    try:
        cursor.execute(_ASK_POLICIES)
    except psycopg2.ProgrammingError:  # a server that speaks PostgreSQL's protocol only
        return ()
    return tuple(Policy(*row) for row in cursor.fetchall())


def _setting(shown: str, value: str, unit: str | None, source: str) -> Setting:
    try:
        number = float(value) * _UNITS.get(unit or "", 1.0)
    except ValueError:
        return Setting(shown, None, source)
    return Setting(shown, number, source)


def _whole(setting: Setting | None) -> int:
    return int(setting.number or 0) if setting else 0


def _tls(conn: Connection) -> Tls | None:
    if not conn.info.ssl_in_use:
        return None
    version, cipher = map(conn.info.ssl_attribute, ("protocol", "cipher"))
    return Tls(version or "unknown", cipher or "unknown")


def _pooler(connections: Connections) -> Pooler | None:
    first, second = connections.first, connections.second
    served = [{_pid(conn) for _ in range(3)} for conn in (first, second)]
    shares = sharing(first.info.backend_pid, *served)
    if shares is None:
        return None
    try:
        [(software,)], configuration = connections.ask_elsewhere(
            _CONSOLE, "SHOW VERSION", "SHOW CONFIG"
        )
    except (psycopg2.Error, ValueError):  # another pooler, or one that does not tell this user
        return Pooler(shares)
    limit = {row[0]: row[1] for row in configuration}.get("max_client_conn")
    return Pooler(shares, software, None if limit is None else int(limit))


def sharing(told: int, first: Collection[int], second: Collection[int]) -> bool | None:
    """Tell whether a pooler shares processes between two open connections; None if there is none.

    `told` is the process id that the first was told when it was opened, the others are those
    that have served the two since.
    """
    if len(first) > 1 or len(second) > 1 or not set(first).isdisjoint(second):
        return True
    return None if told in first else False


def _pid(conn: Connection) -> int:
    [(pid,)] = ask(conn, "SELECT pg_backend_pid()")
    return int(pid)
