"""When two configurations of a pool are the same: their canonical form, and its key."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import inspect
import os
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

from psycopg2 import extensions as ext

from . import checks
from .arguments import ConnectArguments
from .breaker import CircuitBreaker
from .connector import DEFAULTS
from .hidden import HiddenDict, hidden, hidden_text
from .options import PoolOptions
from .pool import ConnectionPool
from .targets import DEFAULT_PORT, SESSION_VARIABLES, all_effective, read_targets
from .text import printable

Config = str | Mapping[str, Any]
"""A dsn, or a mapping of :class:`~psycopg2_pool2.ConnectionPool`'s arguments."""

_OPTION_DEFAULTS: Mapping[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(ConnectionPool).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD
}
# What libpq never shows.
_SECRET_PARAMETERS = frozenset(
    ("oauth_client_secret", "password", "scram_client_key", "scram_server_key", "sslpassword")
)
# Lives as long as the process; a forked child keeps it, as it keeps the pools' keys.
_process_secret = os.urandom(32)


class Configuration:
    """A configuration in its canonical form.

    ``arguments`` make the pool.  They say where to connect in full, so that the
    pool goes on connecting there when the environment or the service file
    changes: to what its key stands for.  ``held`` are the objects that the key
    knows by identity; while they live no other has theirs.
    """

    __slots__ = ("arguments", "held", "key")  # no repr: there may be a password in it

    def __init__(self, key: str, arguments: Mapping[str, Any], held: Sequence[object]) -> None:
        self.key = key
        self.arguments = arguments
        self.held = held


def read_configuration(config: Config) -> Configuration:
    """Return the canonical form of a configuration.

    Equal are those that make the same pool, however they say it: in a dsn, a
    URL, keywords, a service file or the environment, in whatever order, with
    defaults written out or left out.  The pool's ``name`` is part of it.
    Callables, classes and resolvers are the same if they are the same object, a
    bound method if it is the same method of the same object, and a
    :class:`~psycopg2_pool2.CircuitBreaker` if it has the same limits.  What
    libpq looks up by itself (a password file, a certificate) is known by its
    path.  ``PGTZ``, ``PGDATESTYLE`` and ``PGGEQO``, which libpq sends at every
    connect, are part of it.  In doubt two configurations are not the same.

    Raises what :class:`~psycopg2_pool2.ConnectionPool` would raise, and
    TypeError or ValueError naming the argument that has no canonical form.
    """
    given = hidden(_arguments(config))
    options = _options(given)
    objects, keywords = map(HiddenDict, _connect_arguments(given))
    dsn = given.get("dsn") or ""
    if isinstance(dsn, str):
        _sendable("dsn", dsn)
    parsed = ConnectArguments({"dsn": dsn, **keywords, **objects}, None).parameters
    parameters = _effective(parsed)
    marks = _Marks()
    marks.add("option", options)
    marks.add("object", objects)
    marks.add("parameter", _comparable(parameters))
    marks.add("session", {name: os.environ.get(name) for name in SESSION_VARIABLES})
    arguments = HiddenDict({**options, **objects, **keywords, "dsn": dsn})
    if options["connect_params"] is None:
        arguments["dsn"] = hidden_text(_frozen(parameters, keywords))
        arguments.pop("service", None)  # all that it said is in the dsn
    # Else the dsn and the environment are read at every connect, since what is
    # called there may replace them.
    if type(options["breaker"]) is CircuitBreaker:
        arguments["breaker"] = options["breaker"].copy()  # which nobody changes
    return Configuration(marks.key(), arguments, marks.held)


def _arguments(config: Config) -> dict[str, Any]:
    if isinstance(config, str):
        return {"dsn": config}
    if not isinstance(config, Mapping):
        raise TypeError(
            "config must be a dsn or a mapping of ConnectionPool's arguments,"
            f" not a {type(config).__name__}"
        )
    for name in config:
        if not isinstance(name, str):
            raise TypeError(f"config has a key that is not a str: {name!r}")
    return dict(config)


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all of the pool's own options, checked as the pool checks them.

    Here too, since what is wrong must not find the pool of what is right: 10.0
    and 10 are the same number of seconds, but only one is a number of uses.
    """
    options = {name: given.get(name, default) for name, default in _OPTION_DEFAULTS.items()}
    checks.sizes(options["minconn"], options["maxconn"])
    checks.function("connect_params", options["connect_params"], None)
    PoolOptions(**{name: options[name] for name in PoolOptions._fields}).checked()
    return options


def _connect_arguments(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what is for psycopg2.connect: objects that it uses, and libpq's keywords as text."""
    objects, keywords = {}, {}
    for name, value in given.items():
        if name in _OPTION_DEFAULTS or name == "dsn" or value is None:
            continue
        if name in ("connection_factory", "cursor_factory"):
            objects[name] = value
        elif name in ("async", "async_"):
            ConnectArguments({name: value}, None)  # refuses it unless it is off
        else:
            keywords[name] = _as_text(name, value)
    if "database" in keywords and "dbname" not in keywords:  # both are refused
        keywords["dbname"] = keywords.pop("database")
    return objects, keywords


def _as_text(name: str, value: Any) -> str:
    """Return what libpq is told; for an object of another kind it would be how that is shown."""
    if not isinstance(value, (str, int, float, os.PathLike)):
        what = printable(name)
        raise TypeError(f"{what} must be a str or a number, not a {type(value).__name__}")
    return _sendable(name, str(value))


def _sendable(name: str, text: str) -> str:
    if "\0" in text:  # where libpq would end the text
        raise ValueError(f"{printable(name)} must not contain a null character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{printable(name)} cannot be encoded in UTF-8") from None
    return text


def _effective(parsed: Mapping[str, str]) -> dict[str, str]:
    """Return all that libpq would be told, by service file and environment too.

    With its defaults where the environment could take their place later.  Not
    the service's name: its contents say the same.
    """
    parameters = all_effective(parsed)
    parameters.pop("service", None)
    for name, value in list(parameters.items()):
        _sendable(name, value)
        # The pool takes an empty PGCONNECT_TIMEOUT for none, where libpq fails.
        if not value and name in DEFAULTS and name not in parsed:
            del parameters[name]
    if not parameters.get("hostaddr"):
        parameters.setdefault("host", "")
    if not parameters.get("port"):
        parameters["port"] = str(DEFAULT_PORT)
    parameters.setdefault("options", "")
    if "user" not in parameters and (user := _system_user()) is not None:
        parameters["user"] = user
    if "user" in parameters and not parameters.get("dbname"):
        parameters["dbname"] = parameters["user"]
    return parameters


def _system_user() -> str | None:
    """Return who libpq says that it is; None where that is not known."""
    try:
        import pwd  # there is none on Windows
    except ImportError:
        return None
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return None


def _comparable(parameters: Mapping[str, str]) -> dict[str, Any]:
    """Return the parameters as they enter the key: places in full, secrets disguised."""
    where = {"host", "hostaddr", "port"}
    compared: dict[str, Any] = {name: str(value) for name, value in DEFAULTS.items()}
    for name, value in parameters.items():
        if name in _SECRET_PARAMETERS:
            compared[name] = _disguised(f"{name}={value}") if value else ""
        elif name not in where:
            compared[name] = value
    compared["password"] = compared.get("password", "")  # none is the same as an empty one
    compared["targets"] = repr([tuple(target) for target in read_targets(parameters, {})])
    return compared


def _disguised(secret: str) -> str:
    return hmac.digest(_process_secret, secret.encode(), "sha256").hex()


def _frozen(parameters: Mapping[str, str], keywords: Mapping[str, str]) -> str:
    """Return a dsn of what the keywords do not say."""
    rest = {name: value for name, value in parameters.items() if name not in keywords}
    return str(ext.make_dsn(**rest)) if rest else ""


class _Marks:
    """What a key is made of: a line for each argument, and the objects that it names."""

    def __init__(self) -> None:
        self.held: list[object] = []
        self._lines: list[tuple[str, str, str]] = []

    def add(self, kind: str, arguments: Mapping[str, Any]) -> None:
        """Add arguments of one kind."""
        self._lines += [(kind, name, self._mark(value)) for name, value in arguments.items()]

    def key(self) -> str:
        """Return the SHA-256 of all, in hexadecimal; the order of adding does not matter."""
        return hashlib.sha256(repr(sorted(self._lines)).encode()).hexdigest()

    def _mark(self, value: Any) -> str:
        if value is None or isinstance(value, bool):
            return repr(value)
        if isinstance(value, str):
            return f"text {value}"
        if isinstance(value, (int, float)):
            return _number(value)
        if type(value) is CircuitBreaker:
            limits = (value.threshold, value.backoff, value.max_backoff)
            return f"breaker {[_number(limit) for limit in limits]}"
        if isinstance(value, MethodType):  # a new object each time it is looked up
            return f"method {self._identity(value.__func__)} {self._identity(value.__self__)}"
        return f"object {self._identity(value)}"

    def _identity(self, value: object) -> int:
        self.held.append(value)
        return id(value)


def _number(value: float) -> str:
    whole = isinstance(value, int) or value.is_integer()
    return f"number {int(value) if whole else float(value)!r}"
