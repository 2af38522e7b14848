"""The site's addresses: each is called as its view."""

from __future__ import annotations

from django.urls import path

from . import views

_VIEWS = (
    views.hang,
    views.nothing,
    views.one,
    views.one_async,
    views.orm_async,
    views.save,
    views.stream,
)

urlpatterns = [path(view.__name__, view) for view in _VIEWS]
