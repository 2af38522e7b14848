"""Measurements against other pools, run by `make bench`."""
