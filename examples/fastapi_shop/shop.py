"""A shop whose orders become videos: FastAPI, an AsyncSession of its own, server-sent events."""

import json
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from models.database import normalise_url
from worker.aproducer import StillRunningError, enqueue, events, get
from worker.producer import GenerationView, IdempotencyConflict, InvalidRequest

PATIENCE = 600.0
"""Seconds after which a stream of events ends; the browser comes again by itself."""


class Base(DeclarativeBase):
    """The shop's own tables."""


class Order(Base):
    """An order, and the generation that carries it out."""

    __tablename__ = "shop_orders"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    prompt: Mapped[str]
    generation_id: Mapped[uuid.UUID]


class NewOrder(BaseModel):
    """What a customer asks for."""

    prompt: str = Field(min_length=1, max_length=2_000)


class OrderView(BaseModel):
    """What a customer sees."""

    id: uuid.UUID
    status: str
    error: str | None = None
    video_url: str | None = None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One engine for the process; a real shop would migrate its tables elsewhere."""
    app.state.engine = create_async_engine(normalise_url(os.environ["SEEDANCE_DATABASE_URL"]))
    async with app.state.engine.begin() as conn:
        await conn.run_sync(Base.metadata.create_all)
    yield
    await app.state.engine.dispose()


app = FastAPI(lifespan=lifespan)


async def database(request: Request) -> AsyncIterator[AsyncSession]:
    """A session, one for each request."""
    async with AsyncSession(request.app.state.engine) as session:
        yield session


Database = Annotated[AsyncSession, Depends(database)]


@app.post("/orders", status_code=201)
async def order(
    new: NewOrder,
    session: Database,
    idempotency_key: Annotated[uuid.UUID | None, Header()] = None,
) -> OrderView:
    """Take an order: it and its generation are both there after the commit, or neither."""
    order_id = idempotency_key or uuid.uuid4()
    async with session.begin():
        known = await session.get(Order, order_id)
        if known is None:
            try:
                generation_id = await enqueue(
                    {"content": [{"type": "text", "text": new.prompt}]},
                    session=session,
                    idempotency_key=f"order-{order_id}",
                )
            except InvalidRequest as error:
                raise HTTPException(422, str(error)) from None
            except IdempotencyConflict as error:
                raise HTTPException(409, str(error)) from None
            known = Order(id=order_id, prompt=new.prompt, generation_id=generation_id)
            session.add(known)
        generation_id = known.generation_id
    return _shown(order_id, await get(generation_id))


@app.get("/orders/{order_id}")
async def status(order_id: uuid.UUID, session: Database) -> OrderView:
    """How an order is."""
    return _shown(order_id, await get(await _generation(session, order_id)))


@app.get("/orders/{order_id}/events")
async def follow(
    order_id: uuid.UUID,
    session: Database,
    last_event_id: Annotated[int, Header(ge=0)] = 0,
) -> StreamingResponse:
    """What happens to an order, as it happens."""
    generation_id = await _generation(session, order_id)
    await session.close()  # a stream lives long, and needs no connection of its own
    return StreamingResponse(_lines(generation_id, last_event_id), media_type="text/event-stream")


async def _lines(generation_id: uuid.UUID, seen: int) -> AsyncIterator[str]:
    try:
        async for event in events(generation_id, skip=seen, timeout=PATIENCE):
            seen += 1
            said = json.dumps({"event": event.event, "status": event.to_status})
            yield f"id: {seen}\ndata: {said}\n\n"
    except StillRunningError:
        return


async def _generation(session: AsyncSession, order_id: uuid.UUID) -> uuid.UUID:
    found = await session.scalar(select(Order.generation_id).where(Order.id == order_id))
    if found is None:
        raise HTTPException(404, "no such order")
    return found


def _shown(order_id: uuid.UUID, view: GenerationView) -> OrderView:
    return OrderView(
        id=order_id, status=view.status, error=view.error_message, video_url=view.video_url
    )
