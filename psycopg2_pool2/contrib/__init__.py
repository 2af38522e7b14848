"""Adapters to other software: nothing imports them, and each needs its own extra."""
