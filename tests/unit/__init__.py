"""Tests of single parts: no server, no sleep."""
