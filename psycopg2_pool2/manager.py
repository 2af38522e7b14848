"""One pool per configuration, for programs that are told at run time where to connect."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Generator, Iterator
from typing import Any

from . import checks
from .configuration import Config, Configuration, read_configuration
from .errors import PoolError
from .failures import copy_error, is_interruption
from .hidden import hidden_config
from .log import logger
from .pool import ConnectionPool
from .processes import process_lock

_FEW = 16


class _Entry:
    """A pool in the cache; ``begun`` and ``asked`` are places in the manager's sequence."""

    __slots__ = ("asked", "begun", "config", "pool")

    def __init__(self, config: Configuration, begun: int, pool: ConnectionPool) -> None:
        self.config = config
        self.pool = pool
        self.begun = self.asked = begun

    def is_idle(self) -> bool:
        """Tell whether nobody has one of its connections or waits for one."""
        return not self.pool.stats().in_use and not self.pool.get_stats()["requests_waiting"]


class _Making:
    """The making of one configuration's pool; who holds ``turn`` may make it."""

    __slots__ = ("error", "owner", "turn")

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.owner: int | None = None  # the thread that makes it
        self.error: BaseException | None = None  # for those who wait for the turn


class PoolManager:
    """One :class:`ConnectionPool` per configuration, shared by all who ask for it.

    ``max_pools``
        How many pools to keep.  Above it the one that was asked for least
        recently is closed, of those that nobody uses; while all are in use
        the limit is exceeded, with one warning.  None: all.

    Ask for the pool whenever you borrow rather than keeping it: one that was
    closed to make room raises :class:`PoolClosed`, and :meth:`get_pool` makes
    it anew.  Their sessions end with the process.  A forked child keeps the
    pools, empty as every pool is there.
    """

    # How threads agree.  `_lock` guards `_entries` and `_making`; nothing is
    # made, closed, asked or awaited under it.
    #
    # 1. Look in `_entries`.  An open pool is the answer; that it was asked for
    #    is noted in the same section, so that none is lent that step 8 of
    #    another thread has taken out.
    # 2. Else take the configuration's _Making from `_making`, or put one there.
    # 3. Wait for its turn.  The manager's lock is free: other configurations go
    #    on.  The same thread never waits for itself: that is an error.
    # 4. Look again: the one who had the turn has put the pool there.  Or he
    #    failed, and his error is everybody's who waited for it.  Or he was
    #    interrupted, and told nothing: then
    # 5. make the pool, which may connect.
    # 6. Put it into `_entries`, unless there is one that is as good: after an
    #    interruption two may have been made.  What was replaced is closed.
    # 7. Take the _Making out of `_making`, and only then tell an error: whoever
    #    comes later tries himself.  Leave the turn.
    # 8. Above `max_pools`: find an idle pool, the least recently asked for
    #    first, then take it out if nobody has asked for it since, then close it.
    #
    # With `force_reload` an answer is only a pool whose making began after the
    # question (`begun`); so of many who ask at once one makes it for all.
    # An interruption after any of these steps leaves the turn free (the lock's
    # own `__exit__` does it) and nothing behind that the next one trips over.

    def __init__(self, max_pools: int | None = None) -> None:
        self._max_pools: int | None = checks.count("max_pools", max_pools, least=1, optional=True)
        self._entries: dict[str, _Entry] = {}
        self._sequence = itertools.count(1)
        self._exceeded = False  # and told
        self._look_at = _FEW
        self._begin_process()
        _managers.add(self)

    def _begin_process(self) -> None:
        """Start with free locks; again in a forked child, where their holders do not exist."""
        self._lock = threading.RLock()  # a finalizer may ask for a pool, in any section
        self._making: dict[str, _Making] = {}
        self._pid = os.getpid()  # last: other threads go by it

    def _notice_fork(self) -> None:
        if os.getpid() != self._pid:  # a fork that Python was not told of
            with process_lock():
                if os.getpid() != self._pid:  # else another thread was faster
                    self._begin_process()

    def get_pool(self, config: Config, force_reload: bool = False) -> ConnectionPool:
        """Return the pool for a configuration, made if there is none.

        ``config`` is a dsn or a mapping of :class:`ConnectionPool`'s arguments.
        The same pool is that of all that mean the same, however they say it: in a
        dsn, a URL, keywords, a service file or the environment, in whatever
        order, with defaults written out or left out.  Two threads that ask at
        once get the same pool; with ``background_prewarm=False`` both wait until
        it is connected, and both get the error if that fails.

        ``force_reload`` makes a new pool and closes the old one: its waiters get
        :class:`PoolClosed`, what is in use is closed when it comes back.  If the
        new one cannot be made the old one stays.

        Raises what :class:`ConnectionPool` raises, and TypeError or ValueError
        for what has no canonical form; then nothing is kept.
        """
        self._notice_fork()
        config = hidden_config(config)
        configuration = read_configuration(config)
        after = next(self._sequence) if force_reload else 0
        pool = self._find(configuration.key, after)
        if pool is None:
            pool = self._make(configuration, after)
            self._forget_closed()
            self._evict(configuration.key)
        return pool

    def clear_cache(self) -> None:
        """Close all pools and forget them; what is in use is closed when it comes back."""
        self._notice_fork()
        for entry in self._taken_out():
            entry.pool.shutdown()

    async def clear_cache_async(self) -> None:
        """Do what :meth:`clear_cache` does, and let the event loop go on after each pool.

        Closing sends a few bytes and waits for nothing, so no thread is needed.
        """
        self._notice_fork()
        for entry in self._taken_out():
            entry.pool.shutdown()
            await _NextRound()

    @property
    def cache_info(self) -> dict[str, Any]:
        """The number of pools, the limit, and what each of them has open.

        ``{"size": 1, "max_pools": None, "pools": {key: {"name", "in_use",
        "idle"}}}``, the one first that was asked for least recently.
        """
        self._notice_fork()
        pools = {}
        for entry in self._by_age():
            pool, stats = entry.pool, entry.pool.stats()
            if not pool.closed:
                figures = {"name": pool.name, "in_use": stats.in_use, "idle": stats.idle}
                pools[entry.config.key] = figures
        return {"size": len(pools), "max_pools": self._max_pools, "pools": pools}

    def __repr__(self) -> str:
        return f"<PoolManager size={len(self._entries)} max_pools={self._max_pools}>"

    # -- making ------------------------------------------------------------

    def _find(self, key: str, after: int) -> ConnectionPool | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.pool.closed or entry.begun <= after:
                return None
            entry.asked = next(self._sequence)
            return entry.pool

    def _make(self, configuration: Configuration, after: int) -> ConnectionPool:
        key = configuration.key
        with self._lock:
            making = self._making.setdefault(key, _Making())
        if making.owner == threading.get_ident():
            raise PoolError("the pool is asked for by what is called to make it")
        with making.turn:
            pool = self._find(key, after)
            if pool is not None:
                return pool
            if making.error is not None:
                raise copy_error(making.error)
            making.owner = threading.get_ident()
            error = None
            try:
                begun = next(self._sequence)
                entry = _Entry(configuration, begun, ConnectionPool(**configuration.arguments))
                return self._put(entry, after)
            except Exception as failure:
                if not is_interruption(failure):  # which is this thread's alone
                    error = copy_error(failure)  # without a traceback, which would lead back here
                raise
            finally:
                making.owner = None
                self._leave(key, making)
                making.error = error

    def _put(self, entry: _Entry, after: int) -> ConnectionPool:
        """Keep the new pool, or another that was put there meanwhile; return which."""
        key = entry.config.key
        with self._lock:
            pool = self._find(key, after)
            replaced: _Entry | None = entry
            if pool is None:
                pool, replaced = entry.pool, self._entries.get(key)
                entry.asked = next(self._sequence)
                self._entries[key] = entry
        if replaced is not None:
            replaced.pool.shutdown()
        return pool

    def _leave(self, key: str, making: _Making) -> None:
        with self._lock:
            if self._making.get(key) is making:
                del self._making[key]

    # -- closing -----------------------------------------------------------

    def _by_age(self) -> list[_Entry]:
        with self._lock:
            return sorted(self._entries.values(), key=lambda entry: entry.asked)

    def _forget_closed(self) -> None:
        """Forget the pools that somebody else closed, whenever the pools are twice as many."""
        if len(self._entries) >= self._look_at:
            for entry in self._by_age():
                if entry.pool.closed:
                    self._take_out(entry)
            self._look_at = max(_FEW, 2 * len(self._entries))

    def _evict(self, kept: str) -> None:
        """Close what is above ``max_pools``, of what is idle; never the pool that was just made."""
        limit = self._max_pools
        if limit is None or len(self._entries) <= limit:
            return
        for entry in sorted(self._by_age(), key=lambda entry: not entry.pool.closed):
            asked = entry.asked
            if entry.config.key != kept and (entry.pool.closed or entry.is_idle()):
                if self._give_up(entry, asked, limit):
                    entry.pool.shutdown()
        with self._lock:
            size = len(self._entries)
            told, self._exceeded = self._exceeded, size > limit
        if size > limit and not told:
            logger.warning("%d pools are in use, more than max_pools=%d", size, limit)

    def _give_up(self, entry: _Entry, asked: int, limit: int) -> bool:
        """Take a pool out if it is still too many, and nobody has asked for it since."""
        with self._lock:
            return len(self._entries) > limit and entry.asked == asked and self._take_out(entry)

    def _take_out(self, entry: _Entry) -> bool:
        key = entry.config.key
        with self._lock:
            if self._entries.get(key) is not entry:
                return False
            del self._entries[key]
            return True

    def _taken_out(self) -> Iterator[_Entry]:
        """Take the pools out that are there now, one after the other."""
        return (entry for entry in self._by_age() if self._take_out(entry))


class _NextRound:
    """Awaited: the event loop's other tasks come first."""

    def __await__(self) -> Generator[None, None, None]:
        yield


# -- the manager of the process --------------------------------------------

_managers: weakref.WeakSet[PoolManager] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for manager in list(_managers):
        manager._begin_process()


os.register_at_fork(after_in_child=_after_fork_in_child)

default_manager = PoolManager()
"""The manager that :func:`get_pool` asks."""


def get_pool(config: Config, force_reload: bool = False) -> ConnectionPool:
    """Return the pool for a configuration from the manager of this process.

    See :meth:`PoolManager.get_pool`.
    """
    config = hidden_config(config)
    return default_manager.get_pool(config, force_reload)
