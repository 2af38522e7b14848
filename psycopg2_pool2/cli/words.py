"""Numbers as they are read: times, ages, counts."""

from __future__ import annotations


def milliseconds(seconds: float) -> str:
    """Return a short time, with three digits that mean something."""
    value = seconds * 1000
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f} ms"


def duration(seconds: float) -> str:
    """Return a time in its two largest units at most."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds else "0 s"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = int(seconds // 60)
    for size, large, small in ((1440, "d", "h"), (60, "h", "min")):
        if minutes >= size:
            rest = minutes % size // (60 if large == "d" else 1)
            return f"{minutes // size} {large}" + (f" {rest} {small}" if rest else "")
    rest = int(seconds % 60)
    return f"{minutes} min" + (f" {rest} s" if rest else "")


def count(number: int, noun: str, plural: str = "") -> str:
    """Return a number of things."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def label(host: str | None, address: str | None, port: int | None) -> str:
    """Return how an endpoint is called: its name, its address and its port."""
    name = host or address or "libpq's default socket"
    if host and address and address != host:
        name = f"{host} ({address})"
    return f"{name} port {port}"
