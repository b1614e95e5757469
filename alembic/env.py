"""Runs the migrations: one transaction each, one migrator at a time, never queuing for a lock."""

import os

from sqlalchemy import Connection, text

from alembic import context
from models import (  # noqa: F401  (for the metadata)
    artifacts,
    ledger,
    metrics,
    notices,
    observing,
    operating,
    secret_files,
    workers,
)
from models.database import direct_dsn, make_engine
from models.flow_control import table  # noqa: F401  (likewise)
from models.tables import Base

# Workers go on while a migration runs. Waiting long for a lock would queue them all behind it:
# fail instead, and be run again.
LOCK_TIMEOUT = "5s"
STATEMENT_TIMEOUT = "10min"
MIGRATION_LOCK = 0x5EED_3117


def run(connection: Connection) -> None:
    """Migrate over this connection."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        transaction_per_migration=True,
        compare_server_default=True,
    )
    # For its turn a migrator may wait as long as another takes.
    connection.execute(text(f"SET lock_timeout = 0; SET statement_timeout = '{STATEMENT_TIMEOUT}'"))
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
    connection.commit()
    try:
        with context.begin_transaction():
            context.run_migrations()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
        # The connection may go back to a pool, with the limits that it had.
        connection.execute(text("RESET lock_timeout; RESET statement_timeout"))
        connection.commit()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:  # `alembic` by hand
    url = secret_files.given(os.environ, "SEEDANCE_DATABASE_URL")
    if url is None:
        raise SystemExit("SEEDANCE_DATABASE_URL is not set")
    engine = make_engine(direct_dsn(url))
    with engine.connect() as own:
        run(own)
    engine.dispose()
