"""The table of orders."""

import uuid

from django.db import migrations, models


class Migration(migrations.Migration):
    """Creates it."""

    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            "Order",
            [
                ("id", models.UUIDField(primary_key=True, default=uuid.uuid4, serialize=False)),
                ("prompt", models.TextField()),
                ("generation_id", models.UUIDField()),
            ],
        )
    ]
