"""The site's only table."""

from __future__ import annotations

from django.db import models


class Account(models.Model):  # type: ignore[misc]  # Django has no types
    """Money, and what else is known about it."""

    owner = models.CharField(max_length=30)
    balance = models.IntegerField(default=0)
    notes = models.JSONField(default=dict)
    opened = models.DateTimeField(auto_now_add=True)
