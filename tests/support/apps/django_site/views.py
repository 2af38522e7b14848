"""The site's views: each tells something about the connection that it has."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse

from .models import Account


def backend() -> int:
    """Return the backend that answers."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def nothing(request: HttpRequest) -> Any:
    """Ask the database nothing."""
    return HttpResponse()


def one(request: HttpRequest) -> Any:
    """Tell how many are in use before and after the first query, and who answers it."""
    before = connection.pool.stats().in_use
    answered = backend()
    after = connection.pool.stats().in_use
    return JsonResponse(
        {"before": before, "after": after, "backend": answered, "worker": os.getpid()}
    )


def save(request: HttpRequest) -> Any:
    """Open an account; fail if that is asked for."""
    Account.objects.create(owner=request.GET["owner"])
    if "fail" in request.GET:
        raise ValueError("as it was told to")
    return HttpResponse()


def stream(request: HttpRequest) -> Any:
    """Send the owners one by one, each with the number of connections in use."""

    def owners() -> Iterator[str]:
        for account in Account.objects.order_by("id").iterator(chunk_size=2):
            yield f"{account.owner}{connection.pool.stats().in_use} "

    return StreamingHttpResponse(owners())


async def one_async(request: HttpRequest) -> Any:
    """Do the same as `one`."""
    return await sync_to_async(one)(request)


async def hang(request: HttpRequest) -> Any:
    """Keep a connection until the client goes away."""
    await sync_to_async(backend)()
    await asyncio.Event().wait()


async def orm_async(request: HttpRequest) -> Any:
    """Count with the asynchronous methods, more than once."""
    found = [await Account.objects.acount() for _ in range(3)]
    return JsonResponse({"found": found})
