"""What the texts of failed connects mean, whoever wrote them."""

from __future__ import annotations

import gettext
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2.failure_kinds import (
    FailureKind,
    is_answer,
    never_connected,
    of_sqlstate,
    recognise,
)

SERVER = 'connection to server at "127.0.0.1", port 5432 failed: '
SOCKET = 'connection to server on socket "/run/x/.s.PGSQL.5432" failed: '
LOCALLY = "\n\tIs the server running locally and accepting connections on that socket?"
THERE = "\n\tIs the server running on that host and accepting TCP/IP connections?"

CUT, FULL, LOGIN = FailureKind.CUT, FailureKind.FULL, FailureKind.LOGIN
MISSING_FILE, MISTAKE, NOT_NOW = (
    FailureKind.MISSING_FILE,
    FailureKind.MISTAKE,
    FailureKind.NOT_NOW,
)
ROLE, SILENT = FailureKind.ROLE, FailureKind.SILENT

POSTGRESQL = [
    ('password authentication failed for user "x"', LOGIN),
    ('PAM authentication failed for user "x"', LOGIN),
    ('no pg_hba.conf entry for host "::1", user "x", database "x", no encryption', LOGIN),
    ('pg_hba.conf rejects connection for host "::1", user "x", database "x"', LOGIN),
    ('role "x" does not exist', LOGIN),
    ('role "x" is not permitted to log in', LOGIN),
    ('database "x" does not exist', LOGIN),
    ('database "too many clients already" does not exist', LOGIN),
    ('role "the database system is starting up" does not exist', LOGIN),
    ('permission denied for database "x"\nDETAIL:  User does not have CONNECT privilege.', LOGIN),
    ('database "x" is not currently accepting connections', LOGIN),
    ("connection requires a valid client certificate", LOGIN),
    ('unrecognized configuration parameter "x"', LOGIN),
    ('invalid value for parameter "work_mem": "x"', LOGIN),
    ("sorry, too many clients already", FULL),
    (
        "remaining connection slots are reserved for roles with the SUPERUSER attribute",
        FULL,
    ),
    (
        "remaining connection slots are reserved for non-replication superuser connections",
        FULL,
    ),
    ('too many connections for role "x"', FULL),
    ('too many connections for database "x"', FULL),
    ("the database system is starting up", NOT_NOW),
    ("the database system is shutting down", NOT_NOW),
    ("the database system is in recovery mode", NOT_NOW),
    (
        "the database system is not yet accepting connections\n"
        "DETAIL:  Consistent recovery state has not been yet reached.",
        NOT_NOW,
    ),
    (
        "the database system is not accepting connections\nDETAIL:  Hot standby mode is disabled.",
        NOT_NOW,
    ),
    ("terminating connection due to administrator command", NOT_NOW),
    ("terminating connection due to idle-session timeout", NOT_NOW),
    ("terminating connection because of crash of another server process", NOT_NOW),
    ("terminating connection due to unexpected postmaster exit", NOT_NOW),
    ("canceling authentication due to timeout", NOT_NOW),
    ('could not write to file "pg_xlog": No space left on device', NOT_NOW),
]

# Some of them without a severity.
LIBPQ = [
    (SERVER + "Connection refused" + THERE, CUT),
    (SERVER + "Permission denied" + THERE, CUT),
    (SOCKET + "No such file or directory" + LOCALLY, CUT),
    (SERVER + "server closed the connection unexpectedly\n\tThis probably means ...", CUT),
    ("server closed the connection unexpectedly", CUT),
    (SERVER + "could not receive data from server: Connection reset by peer", CUT),
    (SERVER + "could not send startup packet: Broken pipe", CUT),
    (SERVER + "could not send SSL negotiation packet: Connection reset by peer", CUT),
    (SERVER + "SSL SYSCALL error: EOF detected", CUT),
    (SERVER + "SSL error: unexpected eof while reading", CUT),
    (SERVER + "SSL connection has been closed unexpectedly", CUT),
    (SERVER + "received invalid response to SSL negotiation: H", CUT),
    (SERVER + "expected authentication request from server, but received H", CUT),
    (SERVER + "server sent an error response during SSL exchange", CUT),
    ("could not create socket: Too many open files", CUT),
    (SERVER + "timeout expired", SILENT),
    (SERVER + "Connection timed out" + THERE, SILENT),
    (SERVER + "No route to host" + THERE, SILENT),
    (SERVER + "Network is unreachable" + THERE, SILENT),
    ('could not translate host name "x" to address: Name or service not known', SILENT),
    (SERVER + "session is read-only", ROLE),
    (SERVER + "session is not read-only", ROLE),
    (SERVER + "server is in hot standby mode", ROLE),
    (SERVER + "server is not in hot standby mode", ROLE),
    (SERVER + "could not fork new process for connection: Resource ...", NOT_NOW),
    (SERVER + "sorry, too many clients already", FULL),
    (SERVER + "fe_sendauth: no password supplied", LOGIN),
    (SERVER + "server does not support SSL, but SSL was required", LOGIN),
    (SERVER + "server doesn't support GSSAPI encryption, but it was required", LOGIN),
    ("GSSAPI encryption required but no credential cache", LOGIN),
    (SERVER + "SSL error: certificate verify failed", LOGIN),
    (SERVER + "SSL error: tlsv13 alert certificate required", LOGIN),
    (SERVER + 'server certificate for "x" does not match host name "y"', LOGIN),
    (
        SERVER + 'private key file "k" has group or world access; file must have permissions',
        LOGIN,
    ),
    (SERVER + 'could not load private key file "k": bad decrypt', LOGIN),
    (SERVER + 'certificate does not match private key file "k": key values mismatch', LOGIN),
    (
        SERVER + 'authentication method requirement "scram-sha-256" failed: '
        "server requested a cleartext password",
        LOGIN,
    ),
    (SERVER + "server did not complete authentication", LOGIN),
    (
        SERVER + "channel binding required, but server authenticated client without it",
        LOGIN,
    ),
    (SERVER + "authentication method 99 not supported", LOGIN),
    (SERVER + "none of the server's SASL authentication mechanisms are supported", LOGIN),
    (SOCKET + 'requirepeer specifies "a", but actual peer user name is "b"', LOGIN),
    (SERVER + 'root certificate file "r" does not exist\nEither provide ...', MISSING_FILE),
    (SERVER + 'could not open certificate file "c": No such file or directory', MISSING_FILE),
    (SERVER + 'could not read root certificate file "r": Permission denied', MISSING_FILE),
    (SERVER + 'certificate present, but not private key file "k"', MISSING_FILE),
    (SERVER + 'could not stat private key file "k": Permission denied', MISSING_FILE),
    ('invalid sslmode value: "x"', MISTAKE),
    ('invalid "ssl_min_protocol_version" value: "x"', MISTAKE),
    ('sslmode value "require" invalid when SSL support is not compiled in', MISTAKE),
    ('invalid port number: "99999"', MISTAKE),
    ("could not match 3 port numbers to 2 hosts", MISTAKE),
    ('definition of service "x" not found', MISTAKE),
    ('weak sslmode "prefer" may not be used with sslnegotiation=direct', MISTAKE),
    ('require_auth method "md5" is specified more than once', MISTAKE),
    (SERVER + 'invalid integer value "x" for connection option "keepalives"', MISTAKE),
    ('Unix-domain socket path "/x" is too long (maximum 107 bytes)', MISTAKE),
]

PGBOUNCER = [
    ("no more connections allowed (max_client_conn)", FULL),
    ("client connections exceeded (max_db_client_connections)", FULL),
    ("pgbouncer cannot connect to server", NOT_NOW),
    ("client_login_timeout (server down)", NOT_NOW),
    ("query_wait_timeout", NOT_NOW),
    ("server shutting down", NOT_NOW),
    ("pooler is shutting down", NOT_NOW),
    ('database "x" is paused', NOT_NOW),
    ("server conn crashed?", NOT_NOW),
    (
        "server login has been failing, cached error: connect failed (server_login_retry)",
        NOT_NOW,
    ),
    ("server login failed: FATAL the database system is starting up", NOT_NOW),
    ('server login failed: FATAL password authentication failed for user "x"', LOGIN),
    (
        "server login has been failing, cached error: "
        'database "x" does not exist (server_login_retry)',
        LOGIN,
    ),
    (
        "server login has been failing, cached error: "
        "sorry, too many clients already (server_login_retry)",
        FULL,
    ),
    ("server login failed: wrong password type", LOGIN),
    ("server login failed: something else", LOGIN),
    ("no such user: x", LOGIN),
    ("no such database: x", LOGIN),
    ('database "x" is disabled', LOGIN),
    ("bouncer config error", LOGIN),
    ("SASL authentication failed", LOGIN),
    ('"trust" authentication failed', LOGIN),
    ("unix socket login rejected", LOGIN),
    ("no authentication method is found", LOGIN),
    ("unsupported startup parameter: options", LOGIN),
    ("unsupported startup parameter in options: work_mem", LOGIN),
    ("SSL required", LOGIN),
]

OTHERS = [
    # PgCat
    ('No pool configured for database: "x", user: "y"', LOGIN),
    ('Pool down for database: "x", user: "y"', NOT_NOW),
    ("could not get connection from the pool - AllServersDown", NOT_NOW),
    # Odyssey
    ("too many tcp connections (global client_max 100)", FULL),
    ("too many client tcp connections (client_max for user x.y 10)", FULL),
    ("too many active clients for user (pool_size for user x.y reached 1)", FULL),
    ("failed to get remote server connection", NOT_NOW),
    ("failed to connect to remote server s0123", NOT_NOW),
    ("odyssey: c0123: the database system is starting up", NOT_NOW),
    ("Odyssey is gracefully shutting down", NOT_NOW),
    ("can't find suitable host for tsa 'read-write' of user x.y", ROLE),
    ("route for 'x.y' is not found", LOGIN),
    ("incorrect user", LOGIN),
    # Supavisor
    ("Max client connections reached", FULL),
    ("(EMAXCONN) max client connections reached, limit: 200", FULL),
    (
        "MaxClientsInSessionMode: max clients reached - in Session mode max clients are limited",
        FULL,
    ),
    (
        "(EMAXCONN) max clients reached in session mode - max clients are limited to pool_size: 5",
        FULL,
    ),
    ("Unable to check out process from the pool due to timeout", NOT_NOW),
    ("(ECHECKOUTTIMEOUT) unable to check out connection from the pool after 1ms", NOT_NOW),
    ("(EDBHANDLEREXITED) connection to database closed. Check logs", NOT_NOW),
    ("(ECIRCUITBREAKER) too many failed attempts to connect, temporarily blocked", NOT_NOW),
    ("(ECIRCUITBREAKER) too many authentication failures, temporarily blocked", LOGIN),
    ("Tenant or user not found", LOGIN),
    ("(ENOTFOUND) tenant/user x.y not found", LOGIN),
    # Neon
    ("Too many connections attempts", FULL),
    ("Couldn't connect to compute node", NOT_NOW),
    ("Couldn't connect to compute node: Connection refused (os error 111)", NOT_NOW),
    ("Control plane request failed", NOT_NOW),
    ("Control plane request failed: endpoint is temporarily unavailable.", NOT_NOW),
    ("Control plane request failed: endpoint is disabled", LOGIN),
    ("The endpoint has been disabled. Enable it using Neon API and retry.", LOGIN),
    ("Your account or project has exceeded the compute time quota. Upgrade", LOGIN),
    ("Endpoint ID is not specified. Either please upgrade the postgres client", LOGIN),
    ("This IP address 1.2.3.4 is not allowed to connect to this endpoint.", LOGIN),
    ("password authentication failed for user 'x'", LOGIN),
    # RDS Proxy
    ("The maximum number of client connections to the proxy exceeded 100.", FULL),
    ("Timed-out waiting to acquire database connection", NOT_NOW),
    ("The IAM authentication failed because of too many competing requests.", NOT_NOW),
    ("This RDS proxy has no credentials for the role x. Check the credentials", LOGIN),
    ("This RDS Proxy requires TLS connections", LOGIN),
    ("Feature not supported: RDS Proxy currently doesn't support the option x", LOGIN),
    ("The IAM authentication failed for the role x. Check the IAM token", LOGIN),
    # Azure, Heroku, Google Cloud
    ("SSL connection is required. Please specify SSL options and retry.", LOGIN),
    ("Invalid Username specified. Please check the Username and retry connection.", LOGIN),
    ("Cloud SQL IAM service account authentication failed for user 'x'", LOGIN),
    ('too many connections for role "u4f"', FULL),
    # Whatever is between it and its server
    ("upstream: dial tcp 10.0.0.1:5432: connect: connection refused", NOT_NOW),
    ("backend 10.0.0.1 timed out", NOT_NOW),
]

UNKNOWN = [
    SERVER + "FATAL:  Passwort-Authentifizierung für Benutzer »x« fehlgeschlagen",
    SERVER + "FATAL:  das Datenbanksystem startet",
    SERVER + "FATAL:  no, thanks",
    "etwas ganz anderes",
    "",
]


@pytest.mark.parametrize(("text", "kind"), [*POSTGRESQL, *PGBOUNCER, *OTHERS])
@pytest.mark.parametrize("before", [SERVER + "FATAL:  ", SOCKET + "ERROR:  ", "FATAL:  "])
def test_what_a_server_or_a_pooler_says_is_recognised(
    before: str, text: str, kind: FailureKind
) -> None:
    assert is_answer(before + text)
    assert recognise(before + text) is kind
    assert recognise(before + text + "\n") is kind


@pytest.mark.parametrize(("text", "kind"), LIBPQ)
def test_what_libpq_says_is_recognised(text: str, kind: FailureKind) -> None:
    assert not is_answer(text)
    assert recognise(text) is kind


@pytest.mark.parametrize("text", UNKNOWN)
def test_what_is_not_known_is_not_guessed(text: str) -> None:
    assert recognise(text) is None


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        # With TLS the server is full; without, its pg_hba.conf has no entry.
        (['FATAL:  too many connections for role "x"', "FATAL:  no pg_hba.conf entry"], FULL),
        (["FATAL:  the database system is starting up", "FATAL:  no pg_hba.conf entry"], NOT_NOW),
        # An IPv6 address that nobody listens at, and then the server.
        (["Connection refused" + THERE, 'FATAL:  database "x" does not exist'], LOGIN),
        (["Connection refused" + THERE, "timeout expired"], SILENT),
    ],
)
def test_several_attempts_mean_what_the_most_telling_one_means(
    texts: list[str], kind: FailureKind
) -> None:
    assert recognise("\n".join(SERVER + text for text in texts)) is kind
    assert recognise("\n".join(SERVER + text for text in reversed(texts))) is kind


def test_a_name_with_a_quote_in_it_hides_nothing() -> None:
    assert recognise(SERVER + 'FATAL:  role "a"b" does not exist') is LOGIN


# FATAL, and how PostgreSQL says it in other languages; the last are Turkish and Polish.
SEVERITIES = ["FATAL", "FATALE", "FATALT", "ВАЖНО", "ФАТАЛЬНО", "致命错误", "치명적오류"]
SEVERITIES += ["ფატალური", "ÖLÜMCÜL (FATAL)", "KATASTROFALNY"]
# How libpq begins in some languages.
PLACES = [
    SERVER,
    "Verbindung zum Server auf »127.0.0.1«, Port 5432 fehlgeschlagen: ",
    "la connexion au serveur sur « 127.0.0.1 », port 5432 a échoué : ",
    'подключиться к серверу "127.0.0.1", порту 5432 не удалось: ',
    '连接到"127.0.0.1"上的服务器，端口5432失败：',  # noqa: RUF001
    "",
]


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("place", PLACES)
def test_an_answer_is_known_as_one_in_any_language(place: str, severity: str) -> None:
    assert is_answer(f"{place}{severity}:  niet, nein, 不\n")
    assert not is_answer(f"{place}niet, nein, 不\n")
    assert not is_answer(f"{place}niet: nein: 不\n")


@pytest.mark.parametrize("catalogue", sorted(Path("/usr/share/locale").rglob("libpq5-*.mo")))
def test_none_of_libpq_s_own_messages_looks_like_an_answer(catalogue: Path) -> None:
    with catalogue.open("rb") as file:
        translated = gettext.GNUTranslations(file)
    fields = ("NAME:  ", "CONTEXT:  ", "DETAIL:  ", "HINT:  ", "LOCATION:  ", "QUERY:  ")
    place = translated.gettext('connection to server at "%s", port %s failed: ')
    for original, message in _messages(translated).items():
        # These stand behind an answer.
        if not any(field in original for field in fields):
            assert not is_answer(place + message), message


def _messages(translated: gettext.GNUTranslations) -> dict[str, str]:
    catalogue: dict[str, str] = vars(translated)["_catalog"]
    return {key: text for key, text in catalogue.items() if isinstance(key, str) and key}


def test_gssapi_s_blanks_make_no_answer() -> None:
    assert not is_answer(
        SERVER + "GSSAPI continuation error: Unspecified GSS failure.  Minor code may provide"
        " more information: No Kerberos credentials available"
    )


class TestNeverConnected:
    @pytest.mark.parametrize("text", ["ungültiger sslmode-Wert: »x«", "sslmode 值无效"])
    def test_is_what_names_no_place(self, text: str) -> None:
        assert never_connected(psycopg2.OperationalError(text), "db", "10.0.0.1", 5432)
        assert never_connected(psycopg2.OperationalError(text), None, None, 5432)

    @pytest.mark.parametrize(
        "text",
        [
            "Verbindung zum Server auf »db« (10.0.0.1), Port 5432 fehlgeschlagen: x",
            "Verbindung zum Server auf »10.0.0.1«, Port 5432 fehlgeschlagen: x",
            "Verbindung zum Server auf Socket »/run/.s.PGSQL.5432« fehlgeschlagen: x",
            "konnte Hostnamen »db« nicht in Adresse übersetzen: x",
            "FATALE:  x",
            "",
        ],
    )
    def test_is_nothing_else(self, text: str) -> None:
        assert not never_connected(psycopg2.OperationalError(text), "db", "10.0.0.1", 5432)

    def test_is_not_known_of_an_old_libpq(self) -> None:
        error = psycopg2.OperationalError("Zeit abgelaufen")
        assert not never_connected(error, "db", "10.0.0.1", 5432, libpq_version=13_00_00)

    @pytest.mark.parametrize(
        "options",
        [{"sslmode": "x"}, {"target_session_attrs": "x"}, {"port": 99999}, {"service": "x"}],
    )
    def test_agrees_with_libpq(self, options: dict[str, Any]) -> None:
        with pytest.raises(psycopg2.OperationalError) as caught:
            psycopg2.connect(**{"host": "127.0.0.1", "port": 1, **options})
        assert never_connected(caught.value, "127.0.0.1", "127.0.0.1", 1, libpq_version=14_00_00)
        assert recognise(str(caught.value)) is MISTAKE


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("57P01", NOT_NOW),
        ("57P02", NOT_NOW),
        ("57P03", NOT_NOW),
        ("57P05", NOT_NOW),
        ("57014", NOT_NOW),
        ("53300", FULL),
        ("53200", NOT_NOW),
        ("53100", NOT_NOW),
        ("58030", NOT_NOW),
        ("58000", NOT_NOW),
        ("08006", NOT_NOW),
        ("08001", NOT_NOW),
        ("08004", LOGIN),
        ("08P01", LOGIN),
        ("XX000", LOGIN),
        ("28P01", LOGIN),
        ("28000", LOGIN),
        ("3D000", LOGIN),
        ("42501", LOGIN),
        ("55000", LOGIN),
        ("0A000", LOGIN),
        ("ZZZZZ", LOGIN),
        ("", LOGIN),
    ],
)
def test_sqlstates_tell_what_an_answer_means(code: str, kind: FailureKind) -> None:
    assert of_sqlstate(code) is kind


def test_importing_compiles_nothing() -> None:
    """As every program pays for it, and most never meet a failure."""
    import subprocess
    import sys

    program = (
        "import re; compiled = []; real = re.compile;"
        "re.compile = lambda *a: compiled.append(a) or real(*a);"
        "import importlib.util as u; import psycopg2_pool2; compiled.clear();"
        "import sys; sys.modules.pop('psycopg2_pool2.failure_kinds', None);"
        "import psycopg2_pool2.failure_kinds; print(len(compiled))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "0"


@pytest.mark.parametrize(
    "text",
    [
        "FATAL:  zu viele Verbindungen von Rolle »shop«",
        "FATAL:  die verbleibenden Verbindungen sind f\ufffdr Superuser reserviert",
        "FATAL:  demasiadas conexiones para el rol «shop»",
        "FATAL:  trop de connexions pour la base de données « shop »",
        'FATALE:  troppe connessioni per il ruolo "shop"',
        "FATAL:  f\ufffdr m\ufffdnga uppkopplingar f\ufffdr roll",
        'ВАЖНО:  слишком много подключений для роли "shop"',
        'ФАТАЛЬНА ПОМИЛКА:  занадто багато підключень для ролі "shop"',
        '致命的エラー:  ロール"shop"からの接続が多すぎます',
        '치명적오류:  "shop" 롤의 최대 동시 접속수를 초과했습니다',
        '致命错误:  由角色"shop"发起的连接太多了',
    ],
)
def test_a_limit_that_is_reached_is_known_in_other_languages(text: str) -> None:
    assert recognise('connection to server at "127.0.0.1", port 1 failed: ' + text) is FULL
