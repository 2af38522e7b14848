"""Where Celery's messages and results are: in folders, so that no broker is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def settings(folder: Path) -> dict[str, Any]:
    """Return Celery's settings for workers and clients that share a folder.

    What a client sends goes to a worker with `deliver`.
    """
    sent, messages, control, results = _folders(folder)
    for each in (sent, messages, control, results):
        each.mkdir(exist_ok=True)
    return {
        "broker": "filesystem://",
        "backend": results.as_uri(),
        "broker_transport_options": {
            "data_folder_in": str(messages),
            "data_folder_out": str(sent),
            "control_folder": str(control),
            "polling_interval": 0.02,
        },
        # A bind to a queue that exists is all that tasks need.
        "worker_enable_remote_control": False,
        "broker_connection_retry_on_startup": False,
    }


def deliver(folder: Path) -> None:
    """Hand what was sent to the worker, each message at once as a whole.

    Else it might take one that is not written yet, and end.
    """
    sent, messages, *_ = _folders(folder)
    for message in sent.iterdir():
        if _is_complete(message):
            message.rename(messages / message.name)


def _is_complete(message: Path) -> bool:
    try:
        json.loads(message.read_bytes())
    except ValueError:
        return False
    return True


def _folders(folder: Path) -> list[Path]:
    return [folder / name for name in ("sent", "messages", "control", "results")]
