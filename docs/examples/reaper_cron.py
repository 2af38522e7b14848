"""A service whose own scheduler decides when idle connections are closed.

With ``reap_idle_interval=0`` the pool closes none by itself.  Here the scheduler
is the standard library's; any other does as well, from any thread.  Run it::

    export DATABASE_URL=postgresql://user@localhost/postgres
    python reaper_cron.py --every 60
"""

import argparse
import logging
import sched
import threading

from psycopg2_pool2 import ConnectionPool

log = logging.getLogger("reaper_cron")


def work(pool):
    """Do a moment's work, on ten connections at a time."""

    def query():
        with pool.conn() as conn, conn.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.1)")

    threads = [threading.Thread(target=query) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def reap(pool):
    """Close what has been idle for too long, and what nobody needed for so long."""
    closed = pool.reap_idle_connections()
    log.info("closed %d idle connections, %d are left", closed, pool.stats().idle)


def repeat(scheduler, seconds, job, pool):
    """Do a job now and every so many seconds."""
    scheduler.enter(seconds, 0, repeat, (scheduler, seconds, job, pool))
    job(pool)


def main():
    """Work every hour, and tidy up now and then."""
    parser = argparse.ArgumentParser(description="Reap idle connections from a scheduler.")
    parser.add_argument("--every", type=float, default=60, help="seconds between two reapings")
    parser.add_argument("--idle-timeout", type=float, default=300, help="seconds of idleness")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    with ConnectionPool.from_env(
        minconn=1,
        maxconn=10,
        timeout=30,
        idle_timeout=options.idle_timeout,
        reap_idle_interval=0,
    ) as pool:
        scheduler = sched.scheduler()
        repeat(scheduler, 3600, work, pool)
        repeat(scheduler, options.every, reap, pool)
        scheduler.run()


if __name__ == "__main__":
    main()
