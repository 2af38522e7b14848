"""Processes of one thread, forked from a master that has loaded the application."""

wsgi_app = "wsgi:app"
preload_app = True
workers = 2
