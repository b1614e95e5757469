"""Migrations from code: where they lie, running them, and telling whether they have been run."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from alembic import command
from models.database import direct_dsn, make_engine, pooled


def script_folder() -> Path:
    """Beside the package in a checkout, inside it when installed from a wheel."""
    installed = Path(__file__).parent / "migrations"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "alembic"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(script_folder()).replace("%", "%%"))
    return config


@dataclass(frozen=True)
class Revision:
    """Where the database is, and where this code wants it."""

    current: str | None
    head: str
    known: bool = True
    """Whether this code has a migration of that name; a newer version's it doesn't know."""

    @property
    def up_to_date(self) -> bool:
        """Nothing to migrate."""
        return self.current == self.head

    @property
    def newer(self) -> bool:
        """The database is ahead of this code, as when the version before is started again."""
        return self.current is not None and not self.known


def revision(engine: Engine) -> Revision:
    """Read both revisions."""
    scripts = ScriptDirectory.from_config(_config())
    head = scripts.get_current_head()
    assert head is not None, "there is at least one migration"
    with engine.connect() as conn:
        current = MigrationContext.configure(conn).get_current_revision()
    known = current is None or current in {script.revision for script in scripts.walk_revisions()}
    return Revision(current, head, known)


def upgrade(engine: Engine, target: str = "head") -> Revision:
    """Migrate up. Safe to run twice at once and while workers run; newer tables are left alone."""
    config = _config()
    if (found := revision(engine)).newer:
        return found
    with _with_sessions(engine) as own, own.connect() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, target)
    return revision(engine)


@contextlib.contextmanager
def _with_sessions(engine: Engine) -> Iterator[Engine]:
    """An engine to PostgreSQL itself: migrators take turns by a lock of their session."""
    if not pooled(engine.url):
        yield engine
        return
    own = make_engine(direct_dsn(engine.url), pool_size=1, application="seedance-migrate")
    try:
        yield own
    finally:
        own.dispose()


def downgrade(engine: Engine, target: str = "base") -> None:
    """Migrate down; `base` removes everything."""
    config = _config()
    with engine.connect() as conn:
        config.attributes["connection"] = conn
        command.downgrade(config, target)
