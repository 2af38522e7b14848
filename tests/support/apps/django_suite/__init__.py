"""What Django's own tests are run with: settings, and our backend with the tests that it skips."""

# Before anything of Django's that would choose psycopg, if that is installed.
import psycopg2_pool2.contrib.django  # noqa: F401
