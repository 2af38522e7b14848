"""What psycopg2.connect is called with: checked at once, merged at every connect, kept secret."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import psycopg2
from psycopg2 import extensions as ext

from .failure_kinds import FailureKind
from .failures import call_back, mark
from .hidden import HiddenDict, hidden, hidden_text
from .targets import effective
from .text import in_one_line, printable_lines

_OWN = frozenset(("dsn", "connection_factory", "cursor_factory", "async", "async_"))
_WHERE = frozenset(("host", "hostaddr", "port"))
_SECRET = ("password", "sslpassword")
# Whose values may look like anything.
_FREE = ("application_name", "fallback_application_name", "options", *_SECRET)

Parameters = dict[str, str]


class ConnectArguments:
    """The arguments of a pool's connects; safe to use from any thread.

    Raises TypeError, ValueError or :class:`psycopg2.ProgrammingError` for what
    psycopg2 or libpq would not accept, without telling values that may be secret.
    """

    def __init__(
        self,
        kwargs: Mapping[str, Any],
        connect_params: Callable[[], Mapping[str, Any]] | None,
    ) -> None:
        kwargs = hidden(kwargs)
        self._kwargs = HiddenDict(kwargs)
        self._connect_params = connect_params
        self.connection_factory = self._kwargs.pop("connection_factory", None)
        for name in ("connection_factory", "cursor_factory"):
            factory = kwargs.get(name)
            if factory is not None and not callable(factory):
                raise TypeError(f"{name} must be callable, not a {type(factory).__name__}")
        for name in ("async", "async_"):
            if not _is_off(kwargs.get(name)):
                raise ValueError(f"{name} connections cannot be pooled")
        # Of the constructor and of the last connects.
        self._secrets: deque[str] = deque(maxlen=8)
        self.parameters = parse(self._kwargs)
        self._remember(self.parameters)

    def effective(self, name: str) -> str | None:
        """Return what libpq will use for a parameter, the environment included."""
        return effective(self.parameters, name)

    def merged(self, where: Mapping[str, Any]) -> tuple[dict[str, Any], Parameters]:
        """Return the arguments of one connect, and libpq's parameters as they say them.

        ``where`` are keywords that say where to.  What ``connect_params`` returns
        goes before them, and stands in for all of them if it says where to itself.
        """
        given = self._ask_connect_params()
        if not given.keys().isdisjoint(("dsn", "host", "hostaddr", "service")):
            where = {}
        kwargs = HiddenDict({**self._kwargs, **where, **given})
        parameters = parse(kwargs)
        if given:
            self._remember(parameters)
        return kwargs, parameters

    def _ask_connect_params(self) -> Mapping[str, Any]:
        if self._connect_params is None:
            return {}
        given = call_back(self._connect_params)  # a token service has its bad moments
        try:
            given = _checked_parameters(given)
            return hidden(given)
        except TypeError as error:
            mark(error, FailureKind.MISTAKE)
            raise

    # -- secrets -----------------------------------------------------------

    def _remember(self, parameters: Parameters) -> None:
        for name in _SECRET:
            secret = parameters.get(name)
            if secret and secret not in self._secrets:
                self._secrets.append(secret)

    def tell(self, error: BaseException) -> str:
        """Return an error's text in one line, without control characters and without secrets.

        A callback of the program's may have put them there.
        """
        text = str(error)
        for secret in list(self._secrets):
            # A short one may be part of any word.
            edges = ("", "") if len(secret) > 3 else (r"(?<!\w)", r"(?!\w)")
            text = re.sub(re.escape(secret).join(edges), "***", text)
        return in_one_line(text)

    def censored(self, error: psycopg2.Error) -> psycopg2.Error:
        """Return libpq's error without the secrets and without the newline that it ends with.

        libpq quotes values; a word of its own that happens to be the password
        stays, since the text is read for what it means.
        """

        def blank(match: re.Match[str]) -> str:
            quoted = match[1]
            told = any(quoted == s or (len(s) > 3 and s in quoted) for s in list(self._secrets))
            return '"***"' if told else match[0]

        return type(error)(printable_lines(re.sub(r'"([^"]*)"', blank, str(error).strip())))


def _checked_parameters(given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise TypeError("connect_params must return a mapping of psycopg2.connect's keywords")
    for name in ("connection_factory", "async", "async_"):
        if name in given:
            raise TypeError(f"connect_params must not return {name}")
    return given


def parse(kwargs: Mapping[str, Any]) -> Parameters:
    """Return libpq's parameters as dsn and keywords give them."""
    dsn = "" if kwargs.get("dsn") is None else hidden_text(kwargs["dsn"])
    if not isinstance(dsn, (str, bytes)):
        raise TypeError(f"dsn must be a str, not {type(dsn).__name__}")
    keywords = HiddenDict((k, v) for k, v in kwargs.items() if k not in _OWN and v is not None)
    if "database" in keywords:
        if "dbname" in keywords:
            raise TypeError("database and dbname are the same: only one may be given")
        keywords["dbname"] = keywords.pop("database")
    parameters = _parsed(dsn, keywords)
    # Raised here, where there is no context that would tell what was left out.
    if isinstance(parameters, str):
        raise psycopg2.ProgrammingError(parameters)
    _refuse_misplaced(parameters)
    return parameters


def _parsed(dsn: Any, keywords: Mapping[str, Any]) -> Parameters | str:
    """Return the parameters, or what is wrong with them."""
    try:
        made = ext.make_dsn(dsn, **keywords)
        if "\0" in str(dsn) or "\0" in str(made):  # which libpq would take for the end
            return "the dsn or a keyword holds a zero byte"
        return hidden(ext.parse_dsn(made))
    except psycopg2.ProgrammingError as error:
        return _without_quotes(str(error), keywords)
    except UnicodeError:
        return "the dsn or a keyword is not valid UTF-8"
    except ValueError:
        return "the dsn or a keyword holds a zero byte"


def _refuse_misplaced(parameters: Parameters) -> None:
    """Refuse what is a dsn in the wrong place, or a password that was not encoded.

    libpq would quote it as the name of a host, or of whatever else.
    """
    for name, value in parameters.items():
        if name in _FREE or name.startswith("oauth"):
            continue
        if "://" in value:
            raise psycopg2.ProgrammingError(f"{name} must not be a URL; is it meant as the dsn?")
        if name == "host" and any("@" in host[1:] for host in value.split(",")):
            raise psycopg2.ProgrammingError(
                'host must not hold "@": percent-encode it in a URL\'s user and password'
            )


def _is_off(value: Any) -> bool:
    return value is None or value is False or (type(value) is int and value == 0)


def _without_quotes(message: str, keywords: Mapping[str, Any]) -> str:
    """Blank what libpq quotes from a dsn it cannot read: it may be a password."""

    def blank(match: re.Match[str]) -> str:
        return match.group() if match.group(1) in keywords else '"…"'

    told = re.sub(r'"([^"]*)"', blank, message.strip())
    return told.replace('missing "…" after', "missing = after")
