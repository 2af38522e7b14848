"""Tests of what threads do to each other."""
