"""The settings of Django's own tests; ``SITE_DATABASES`` is its ``DATABASES`` as JSON."""

from __future__ import annotations

import json
import os

# psycopg may be installed, and some of the tests choose it before a connection is made.
import psycopg2_pool2.contrib.django  # noqa: F401

DATABASES = json.loads(os.environ["SITE_DATABASES"])
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
SECRET_KEY = "nobody's"
USE_TZ = False
