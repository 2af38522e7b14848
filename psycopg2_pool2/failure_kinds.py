"""What the text of a failed connect means: pure.

libpq reports no SQLSTATE for a failed connect, only a text: its own words, those
of the operating system, or those of whatever answered.  :func:`recognise` knows
the English ones; :func:`is_answer` and :func:`never_connected` tell something
about any other, whatever its language.
"""

from __future__ import annotations

import enum
import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg2


class FailureKind(enum.Enum):
    """What made an attempt to connect fail, as far as it decides what to do next."""

    SILENT = "nobody answered"
    CUT = "the machine refused the connection, or it broke"
    NOT_NOW = "the server is starting, stopping or away"
    FULL = "the server has no room for more connections"
    ROLE = "the server is not in the role that is wanted"
    LOGIN = "the server refused the login"
    MISSING_FILE = "a file that TLS needs cannot be read"
    CALLBACK = "a callback of the program raised"
    MISTAKE = "libpq cannot use what it was given"

    @property
    def label(self) -> str:
        """Return what it is called in logs, commands and the documentation."""
        words = self.name.lower().replace("_", " ")
        return {"login": "refused login", "role": "wrong role"}.get(words, words)


# Compiled at their first use.  What stands between double quotes is gone before they are
# compared: it is a name or a value, which may say anything.
_ROLE = (
    # libpq's, for target_session_attrs.
    r"session is (not )?read-only|server is (not )?in hot standby mode"
    r"|find suitable host for tsa"  # Odyssey
)
_FULL = (
    # PostgreSQL: SQLSTATE 53300.  Heroku says the last; pgpool-II the first.
    r"too many clients already|remaining connection slots are reserved|too many connections for"
    # PgBouncer; versions before 1.24 said only the first.
    r"|no more connections allowed|client connections exceeded"
    # Odyssey
    r"|too many (client )?tcp connections|too many active clients"
    # Supavisor: before version 2, and since.
    r"|max client connections reached|MaxClientsInSessionMode|max clients reached"
    r"|max pools count reached"
    # Neon
    r"|too many connections? attempts|too many connections to this endpoint"
    r"|too many database connection attempts|limit of concurrently active endpoints"
    # RDS Proxy
    r"|maximum number of client connections to the proxy"
    r"|rate of connection to proxy exceeded"
    r"|too many connections"
    # PostgreSQL in other languages.  A limit of a role, of a database or of the reserved slots is
    # told after the login, where the server cannot be asked for the SQLSTATE.  A dot stands for
    # what another encoding may have spoilt.
    r"|zu viele Verbindungen|verbleibenden Verbindungen sind"
    r"|demasiadas conexiones para|conexiones restantes est|demasiados clientes"
    r"|trop de connexions pour|emplacements de connexions? restants|trop de clients"
    r"|troppe connessioni|rimanenti slot di connessione|troppi client"
    r"|muitas conex.+es para|conex.+es restantes|muitos clientes conectados"
    r"|f.r m.nga (uppkopplingar|klienter)|resterande anslutnings"
    r"|zbyt wiele (po..cze.|klient.w)|.ok fazla (ba.lant.|istemci)"
    r"|слишком много (подключений|клиентов)|оставшиеся слоты подключений"
    r"|занадто багато підключень|забагато клієнтів|слоти підключень, які залишились"
    r"|მეტისმეტად ბევრი (კავშირი|კლიენტ)|ძალიან ბევრი კავშირი"
    r"|接続が多すぎます|残りの接続スロット|クライアント数が多すぎます"
    r"|접속수를 초과|접속자 수를 초과|남은 연결 슬롯"
    r"|连接太多|太多的客户|已保留的连接位置|連線過多|過多用戶端"
)
# Refused logins that may stand in the words of a pooler that says "not now" of itself.
_LOGIN = (
    # PostgreSQL: SQLSTATE 28P01, 28000, 3D000, 42501, 42704, 22023, 55000, 0A000.
    r"authentication failed(?! because of too many)|no pg_hba\.conf entry|pg_hba\.conf rejects"
    r"|role .* does not exist|not permitted to (log in|initiate)|database .* does not exist"
    r"|permission denied (for|to)|is not currently accepting connections"
    r"|cannot connect to invalid database|requires a valid client certificate"
    r"|authorization failed|unrecognized configuration parameter|invalid value for parameter"
    r"|invalid command-line argument|unsupported frontend protocol"
    r"|no PostgreSQL user name|provided user name"
    # PgBouncer, where "authentication failed" is not said.
    r"|no such user|no such database|database .* is disabled|login rejected"
    r"|unsupported (options )?startup parameter|bouncer config error|SSL required"
    r"|no authentication method is found|no username supplied|wrong password type"
    r"|old V2 protocol not supported|empty password returned|is not supported by this build"
    r"|SASL authentication mechanisms|server signature"
    # PgCat
    r"|no pool configured for|client auth not possible|no cleartext password set"
    # Odyssey
    r"|route for .* is not found|incorrect user|TLS connection required|SSL is required"
    r"|user blocked|frontend auth:"
    # Supavisor
    r"|tenant or user not found|tenant/user .* not found|no tenant identifier"
    r"|not in tenant allow_list|tenant is banned|SSL connection is required"
    r"|authentication error, reason|user not found in the database|multiple users matched"
    r"|too many authentication failures|no auth_query configured|secrets are not supported"
    r"|startup packet too large"
    # Neon
    r"|compute time quota|endpoint (is|has been) disabled|endpoint (cannot|could not) be found"
    r"|endpoint id is not specified|inconsistent project name|not allowed to connect to this"
    r"|from a blocked network|connection is insecure|VPC endpoint ID|project name \('"
    r"|quota .*(exceeded|reached)|exceeded .* quota"
    # RDS Proxy
    r"|RDS proxy has no credentials|feature not supported: RDS Proxy"
    r"|RDS Proxy (currently|supports|requires)|RDS supports only"
    r"|password that was provided for the role|allowed only with SSL connections"
    # Azure
    r"|invalid username specified|is not allowed to access the server"
)
_NOT_NOW = (
    # PostgreSQL: SQLSTATE 57P03, 57P01, 57P02, 57014, 53200, 53100, and a failed fork.
    r"the database system is (starting up|shutting down|in recovery mode)"
    r"|the database system is not (yet )?accepting connections"
    r"|terminating connection (due to|because of)|canceling (authentication|statement) due to"
    r"|could not fork new process|out of (shared )?memory|no space left on device"
    r"|server is (currently )?(starting|restarting|shutting down|not accepting)"
    # PgBouncer
    r"|pgbouncer cannot connect to server|server_login_retry|server login has been failing"
    r"|client_login_timeout|query_wait_timeout|server shutting down|pooler is shutting down"
    r"|database .* is paused|pause failed|admin forced disconnect|server conn crashed"
    r"|server DNS lookup failed|connect failed|connect timeout|server connection closed"
    # PgCat
    r"|pool down for|could not get connection from the pool|AllServersDown"
    r"|checkout failure limit"
    # Odyssey
    r"|failed to (get|connect to) remote server|remote server .*(read/write error|readahead)"
    r"|gracefully shutting down|killed by Odyssey|dropped by (Odyssey|unexpected reason)"
    r"|replication lag|failed to make auth query|client routing failed"
    # Supavisor
    r"|unable to check ?out|failed to check out|checkout failed|temporarily blocked"
    r"|connection to database (closed|not available)|DbHandler exited|pool (is )?terminating"
    r"|worker processes .* not found|failed to subscribe to tenant|proxy connection"
    r"|proxy supervisor unavailable|auth_query (connection failed|secret check timed out)"
    r"|authentication query failed|failed to retrieve (authentication secrets|database cred)"
    r"|timeout while waiting for message|failed to reach JIT provider"
    # Neon
    r"|couldn't connect to compute node|control plane request failed"
    r"|endpoint is temporarily unavailable|authentication timed out|failed to acquire permit"
    # RDS Proxy
    r"|timed-out waiting to acquire database connection|too many competing requests"
    # pgpool-II
    r"|all backend nodes are down|failed to create a backend connection"
    r"|pgpool is not accepting"
)
# A pooler's failed login at its server, for a reason that is not known.
_POOLER_LOGIN = r"server login failed|login failed"
_MISSING_FILE = (
    r"root certificate file .* does not exist|certificate present, but not private key file"
    r"|could not stat private key file"
    r"|could not (open|read|load) .*(certificate|key) file .*"
    r"(no such file|permission denied|not a directory)"
)
_MISTAKE = (
    r"invalid \S+ value|value \S+ invalid|invalid integer value|invalid port number"
    r"|invalid connection option|could not match \d+|definition of service|service file"
    r"|weak sslmode|require_auth method|invalid SSL protocol version range"
    r"|connection info string|invalid dsn|invalid URI|\bin URI\b|percent-encoded"
    r"|could not parse network address|unix-domain socket path"
    r"|could not look up local user|local user with ID|requirepeer parameter is not supported"
    r"|invalid LDAP URL|on LDAP (lookup|server)|for (minimum|maximum) SSL protocol version"
)
# What libpq finds after it has connected, and will find again.
_LIBPQ_LOGIN = (
    r"no password supplied|authentication method \S+ (not supported|failed|requirement)"
    r"|does not support SSL, but|support GSSAPI encryption, but|GSSAPI encryption required"
    r"|certificate verify failed|does not match host name|server certificate"
    r"|host name must be specified|channel binding|did not complete authentication"
    r"|server (requested|offered|accepted|did not request)|SCRAM|SASL|Kerberos|SSPI"
    r"|GSSAPI (continuation|name import) error|requirepeer specifies"
    r"|(private key|certificate|key) file|private SSL key|SSL engine|ALPN"
    r"|could not get (home directory|server's host name)"
    r"|alert (unknown ca|bad certificate|certificate|unsupported certificate|access denied"
    r"|decrypt error|handshake failure|protocol version|insufficient security"
    r"|unrecognized name|no application protocol)"
    r"|unrecognized name|unsupported protocol|no protocols available|no shared cipher"
    r"|protocol (version|extensions?) not supported by server"
)
_SILENT = (
    r"timeout expired|timed out|no route to host|unreachable|host is down"
    r"|could not translate host name"
)
_CUT = (
    r"connection refused|closed the connection unexpectedly|reset by peer|SSL SYSCALL error"
    r"|unexpected eof|EOF detected|has been closed unexpectedly|broken pipe|connection abort"
    r"|could not (receive|send)|error sending password|received (invalid|unencrypted)"
    r"|expected authentication request|lost synchronization|do not agree with length"
    r"|sent an error response during|unexpected (message|response) from server"
    r"|terminated abnormally|could not (create|set) socket|could not get socket|invalid socket"
    r"|wrong version number|packet length too long|record layer failure|bad record"
    r"|cannot assign requested address|too many open files|network is down"
    r"|could not get peer credentials|is the server running|no connection to the server"
)
_OF_ANSWERS = (
    (_ROLE, FailureKind.ROLE),
    (_FULL, FailureKind.FULL),
    (_LOGIN, FailureKind.LOGIN),
    (_NOT_NOW, FailureKind.NOT_NOW),
    # What met a pooler when it connected to its own server.
    (_SILENT, FailureKind.NOT_NOW),
    (_CUT, FailureKind.NOT_NOW),
    (_POOLER_LOGIN, FailureKind.LOGIN),
)
# Also what an old server or a pooler says without a severity, which looks like libpq's own.
_OF_LIBPQ = (
    *_OF_ANSWERS[:2],
    (_MISSING_FILE, FailureKind.MISSING_FILE),
    (_MISTAKE, FailureKind.MISTAKE),
    (_LIBPQ_LOGIN, FailureKind.LOGIN),
    *_OF_ANSWERS[2:4],
    (_POOLER_LOGIN, FailureKind.LOGIN),
    (_SILENT, FailureKind.SILENT),
    (_CUT, FailureKind.CUT),
)
# Where one text tells of several attempts: with TLS and without, or at several addresses.
# The server that says that it is full would not find an entry in pg_hba.conf without TLS.
_PRECEDENCE = (
    FailureKind.ROLE,
    FailureKind.FULL,
    FailureKind.NOT_NOW,
    FailureKind.LOGIN,
    FailureKind.MISSING_FILE,
    FailureKind.MISTAKE,
    FailureKind.SILENT,
    FailureKind.CUT,
)
_compiled = cache(re.compile)


def recognise(text: str) -> FailureKind | None:
    """Return what libpq's text means, None if it is not known.

    Knows the English messages of libpq, PostgreSQL, PgBouncer, PgCat, Odyssey,
    Supavisor, Neon, RDS Proxy and some others.  Thread-safe.
    """
    attempts = _compiled(r"(?m)^\s*(?=connection to server )").split(text)
    kinds = {_recognise_one(attempt) for attempt in attempts}
    return next((kind for kind in _PRECEDENCE if kind in kinds), None)


def _recognise_one(text: str) -> FailureKind | None:
    meanings = _OF_ANSWERS if is_answer(text) else _OF_LIBPQ
    # A name with a quote in it upsets the pairs: then the names stay in.
    for words in (_compiled(r'"[^"\n]*"').sub('""', text), text):
        for pattern, kind in meanings:
            if _compiled(pattern, re.IGNORECASE).search(words):
                return kind
    return None


def is_answer(text: str) -> bool:
    """Tell whether libpq's text holds an error that a server or a pooler sent.

    In any language: libpq writes such an error as its severity, a colon and two
    blanks before the message, and nothing of its own so.  An answer without a
    severity, which PostgreSQL sends only when it cannot fork, is not noticed.
    """
    # A severity is a word, or two in Turkish.  Before it are "... failed: " or the like, where the
    # colon may be a full-width one.
    words = r'[^\s:\uff1a"]+(?: [^\s:\uff1a"]+)?'
    pattern = rf"(?:^|[:\uff1a])\s?{words}:  (?=\S)"
    return _compiled(pattern, re.MULTILINE).search(text) is not None


_LIBPQ_14 = 14_00_00


def never_connected(
    error: psycopg2.Error,
    host: str | None,
    address: str | None,
    port: int,
    *,
    libpq_version: int | None = None,
) -> bool:
    """Tell whether libpq raised an error before it tried to connect, in any language.

    That is a mistake in what it was given.  Since version 14 libpq begins all
    that it says of a place with that place; older ones do not, and for them this
    is always False.  It is False as well for an error that names the host, such
    as a host name without an address, and for one of psycopg2's own first
    statements: ``error`` has to be the one that psycopg2 raised, no copy.
    """
    if libpq_version is None:
        from psycopg2 import extensions

        libpq_version = extensions.libpq_version()
    if libpq_version < _LIBPQ_14 or error.pgerror is not None:
        return False
    text = str(error)
    if not text.strip() or is_answer(text) or f".s.PGSQL.{port}" in text:
        return False
    names = [name for name in (host, address) if name]
    return not any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in names)


_NOT_NOW_CLASSES = frozenset(
    {
        "53",  # insufficient resources
        "57",  # operator intervention: starting, stopping, crashed
        "58",  # system error
    }
)
# Of class 08 these mean that a pooler cannot reach its server.
_AWAY = frozenset({"08000", "08001", "08003", "08006", "08007"})


def of_sqlstate(code: str) -> FailureKind:
    """Return what an answer to a login means by its SQLSTATE.

    :func:`recognise` goes before it: PgBouncer says 08P01 whatever it means,
    Supavisor and Neon XX000, PgCat 58000.  Whatever is not known is a refused
    login.
    """
    if code == "53300":
        return FailureKind.FULL
    if code[:2] in _NOT_NOW_CLASSES or code in _AWAY:
        return FailureKind.NOT_NOW
    return FailureKind.LOGIN
