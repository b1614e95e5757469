"""Declarative base, naming of constraints, and the column types the tables share."""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, cast

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    MetaData,
    Numeric,
    Table,
    Text,
    any_,
    bindparam,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, mapped_column

# Stated names make a migration that drops a constraint possible on every database.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

Instant = Annotated[datetime, mapped_column(TIMESTAMP(timezone=True))]
"""A point in time, always with its zone; set from the database's clock."""

Credits = Annotated[Decimal, mapped_column(Numeric(14, 4))]
"""An amount of the provider's credits, exact."""

Txid = Annotated[
    int | None,
    mapped_column(BigInteger, server_default=text("((pg_current_xact_id())::text)::bigint")),
]
"""The transaction that wrote the row, for `models.metrics.totals`; null in what is older."""

Json = Annotated[dict[str, Any], mapped_column(JSONB(none_as_null=True))]


class Base(DeclarativeBase):
    """The registry of all tables."""

    metadata = MetaData(naming_convention=NAMING)


def table_of(model: type[Base]) -> Table:
    """The table of a model, for statements of SQLAlchemy's Core."""
    return cast("Table", model.__table__)


_AT_A_TIME = 2_000


def not_among(
    conn: Connection,
    column: ColumnElement[Any],
    *where: Any,
    seen: AbstractSet[str],
) -> list[str]:
    """Texts of a column that are not among many seen. The rows come a few at a time, and the seen
    are sent nowhere: a hundred thousand of them as a parameter take 28 MB for a moment.
    """
    query = select(column).where(column.is_not(None), *where)
    with conn.execute(query, execution_options={"yield_per": _AT_A_TIME}) as rows:
        return [one for one in rows.scalars() if one not in seen]


def among(column: ColumnElement[Any], values: Iterable[str]) -> ColumnElement[bool]:
    """`column` is one of many texts, as one parameter: a statement can't have 65,536 of them."""
    return column == any_(bindparam(None, list(values), ARRAY(Text)))
