"""`python -m psycopg2_pool2`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
