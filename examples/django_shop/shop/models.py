"""The shop's own table."""

import uuid

from django.db import models


class Order(models.Model):
    """An order, and the generation that carries it out."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    prompt = models.TextField()
    generation_id = models.UUIDField()
