"""Make the site's table."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):  # type: ignore[misc]  # Django has no types
    """The first and only one."""

    operations = [  # noqa: RUF012  # as Django writes it
        migrations.CreateModel(
            name="Account",
            fields=[
                ("id", models.AutoField(primary_key=True, serialize=False)),
                ("owner", models.CharField(max_length=30)),
                ("balance", models.IntegerField(default=0)),
                ("notes", models.JSONField(default=dict)),
                ("opened", models.DateTimeField(auto_now_add=True)),
            ],
        ),
    ]
