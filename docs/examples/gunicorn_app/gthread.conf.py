"""Processes of many threads, which share the process's pool."""

wsgi_app = "wsgi:app"
worker_class = "gthread"
preload_app = True
workers = 2
threads = 16
