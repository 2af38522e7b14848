"""Settings of a Celery application whose broker and results are folders."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.apps.celery_folders import settings

_settings = settings(Path(os.environ["APP_FOLDER"]))
broker_url = _settings["broker"]
result_backend = _settings["backend"]
broker_transport_options = _settings["broker_transport_options"]
worker_enable_remote_control = False
broker_connection_retry_on_startup = False
