"""Where Celery's messages and results are: in folders, so that no broker is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def settings(folder: Path) -> dict[str, Any]:
    """Return Celery's settings for workers and clients that share a folder."""
    messages, control, results = folder / "messages", folder / "control", folder / "results"
    for each in (messages, control, results):
        each.mkdir(exist_ok=True)
    return {
        "broker": "filesystem://",
        "backend": results.as_uri(),
        "broker_transport_options": {
            "data_folder_in": str(messages),
            "data_folder_out": str(messages),
            "control_folder": str(control),
            "polling_interval": 0.02,
        },
        # A bind to a queue that exists is all that tasks need.
        "worker_enable_remote_control": False,
        "broker_connection_retry_on_startup": False,
    }
