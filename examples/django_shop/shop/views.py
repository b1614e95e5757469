"""Orders: taken in one transaction with their generation, and waited for without a thread."""

import contextlib
import json
import uuid
from typing import Any

from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import aget_object_or_404
from django.views.decorators.http import require_GET, require_POST

from shop.models import Order
from worker import aproducer
from worker.producer import GenerationView, InvalidRequest, StillRunningError, enqueue, get, joined

LONGEST_WAIT = 60.0


@require_POST
def take(request: HttpRequest) -> JsonResponse:
    """Take an order: it and its generation are both there after the commit, or neither."""
    try:
        prompt = json.loads(request.body)["prompt"]
    except (ValueError, KeyError, TypeError):
        return JsonResponse({"error": 'write {"prompt": "…"}'}, status=400)
    order = Order(prompt=str(prompt))
    try:
        with transaction.atomic():
            connection.ensure_connection()
            with joined(connection.connection) as session:
                order.generation_id = enqueue(
                    {"content": [{"type": "text", "text": prompt}]},
                    session=session,
                    idempotency_key=f"order-{order.id}",
                )
            order.save(force_insert=True)
    except InvalidRequest as error:
        return JsonResponse({"error": str(error)}, status=422)
    return JsonResponse(_shown(order, get(order.generation_id)), status=201)


@require_GET
async def status(request: HttpRequest, order_id: uuid.UUID) -> JsonResponse:
    """How an order is; with `?wait=SECONDS` once it has ended, if it does so in time."""
    order = await aget_object_or_404(Order, id=order_id)
    with contextlib.suppress(StillRunningError, ValueError):
        seconds = min(float(request.GET.get("wait", 0)), LONGEST_WAIT)
        if seconds > 0:
            await aproducer.wait(order.generation_id, timeout=seconds)
    return JsonResponse(_shown(order, await aproducer.get(order.generation_id)))


def _shown(order: Order, view: GenerationView) -> dict[str, Any]:
    return {
        "id": str(order.id),
        "status": view.status,
        "error": view.error_message,
        "video_url": view.video_url,
    }
