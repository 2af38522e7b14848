"""The site's settings."""

from __future__ import annotations

import json
import os

# Some tests have psycopg 3 installed beside psycopg2.
import psycopg2_pool2.contrib.django  # noqa: F401

DATABASES = json.loads(os.environ["SITE_DATABASES"])
INSTALLED_APPS = ["tests.support.apps.django_site"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
ROOT_URLCONF = "tests.support.apps.django_site.urls"
ALLOWED_HOSTS = ["*"]
SECRET_KEY = "nobody"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"
LOGGING_CONFIG = None  # the tests' own
