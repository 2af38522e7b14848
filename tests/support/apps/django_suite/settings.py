"""The settings of Django's own tests; ``SITE_DATABASES`` is its ``DATABASES`` as JSON."""

from __future__ import annotations

import json
import os

DATABASES = json.loads(os.environ["SITE_DATABASES"])
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
SECRET_KEY = "nobody"
USE_TZ = False
