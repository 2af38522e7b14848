"""Sphinx's settings for the documentation of psycopg2_pool2."""

from importlib.metadata import version as installed_version

project = "psycopg2_pool2"
author = "The psycopg2_pool2 developers"
copyright = author
release = version = installed_version("psycopg2_pool2")

extensions = ["sphinx.ext.autodoc"]
rst_prolog = ".. py:currentmodule:: psycopg2_pool2"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# Every reference has to lead somewhere, but for names of other packages and for
# inner names, which only signatures mention.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!psycopg2_pool2\.)\w+\..*"),
    (r"py:(class|data)", r"psycopg2_pool2\.(\w+\.){1,2}\w+"),
]

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"psycopg2_pool2 {release}"
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["pool.css"]
html_copy_source = False
