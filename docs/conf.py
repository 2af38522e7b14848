"""Sphinx's settings for the documentation of psycopg2_pool2."""

from importlib.metadata import version as installed_version

project = "psycopg2_pool2"
author = "The psycopg2_pool2 developers"
copyright = author
release = version = installed_version("psycopg2_pool2")

extensions = ["sphinx.ext.autodoc"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
nitpicky = False
html_theme = "alabaster"
html_theme_options = {"description": "A connection pool for psycopg2"}
