"""What each kind of process may do with the tables: the rights of a database role, as data.

The owner of the tables, who migrates, may do everything; nobody else needs to. A role gets these
rights and no other: no DDL, no TRUNCATE, nothing of tables that aren't ours, and no change of what
is only ever added to (`ledger_entries`, `operator_actions`), which a trigger refuses as well.
"""

from collections.abc import Mapping
from enum import StrEnum

from sqlalchemy import Connection, text

from models.base import Base


class Purpose(StrEnum):
    """What the processes that connect as a role do."""

    WORKER = "worker"
    """Workers, beat and the operator's commands."""
    GATEWAY = "gateway"
    """`seedance gateway` and `seedance metrics`."""
    PRODUCER = "producer"
    """`worker.producer`: enqueue, read, wait, cancel, retry."""


class RoleError(ValueError):
    """Rights can't be given to this role. The message says why, and what to do."""


_S, _SI = frozenset({"SELECT"}), frozenset({"SELECT", "INSERT"})
_SIU = _SI | {"UPDATE"}
_ALL = _SIU | {"DELETE"}

_LOCK = 0x5EED_6247

Rights = Mapping[str, frozenset[str]]

RIGHTS: Mapping[Purpose, Rights] = {
    Purpose.WORKER: {
        "alembic_version": _S,
        "artifacts": _ALL,
        "balance_snapshots": _ALL,
        "budgets": _ALL,
        "breakers": _SIU,
        "flow_control": _SIU,
        "generation_events": _ALL,
        "generations": _ALL,
        "ledger_entries": _SI,
        "metric_cursors": _SIU,
        "metric_totals": _SIU,
        "notice_receivers": _ALL,
        "notices": _ALL,
        "observers": _SIU,
        "operator_actions": _SI,
        "pauses": _ALL,
        "pulses": _ALL,
        "rejected_messages": _ALL,
        "stray_tasks": _ALL,
        "submit_attempts": _ALL,
        "uploads": _ALL,
        "usual_times": _SIU,
        "workers": _ALL,
    },
    Purpose.GATEWAY: {
        **dict.fromkeys(
            (
                *("alembic_version", "artifacts", "balance_snapshots", "breakers", "budgets"),
                *("flow_control", "ledger_entries", "notices", "observers", "pauses", "pulses"),
                *("notice_receivers", "stray_tasks", "workers"),
            ),
            _S,
        ),
        "generation_events": _SI,
        "generations": frozenset({"SELECT", "UPDATE (due_at, failures, lease)"}),
        "metric_cursors": _SIU,
        "metric_totals": _SIU,
        "submit_attempts": frozenset({"SELECT", "UPDATE (callback_at, callback_task_id)"}),
    },
    Purpose.PRODUCER: {
        "artifacts": _S,
        "budgets": frozenset({"SELECT", "UPDATE (changed_at)"}),  # to lock them
        "generation_events": _SI,
        "generations": _SIU,
        "ledger_entries": _SI,
        "notices": _SI,
        "operator_actions": _SI,
        "stray_tasks": _S,
        "submit_attempts": _S,
    },
}
"""By table; a table that is not named is out of reach. UPDATE of columns where that is enough."""


def grant(conn: Connection, role: str, purpose: Purpose) -> None:
    """Give a role the rights of its purpose, and take from it what else it had of our tables.

    Safe while workers run, and to repeat: it has to be after a migration that brings tables. In
    the caller's transaction. Raises RoleError.
    """
    _check(conn, role)
    # Two at once would meet in the catalogue, and one of them fail.
    conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    name = _quoted(conn, role)
    schema = conn.execute(text("SELECT quote_ident(current_schema())")).scalar_one()
    conn.exec_driver_sql(f"REVOKE CREATE ON SCHEMA {schema} FROM {name}")
    conn.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO {name}")
    # A process that grants need not have imported the module of every table.
    named = {table for rights in RIGHTS.values() for table in rights}
    for table in sorted(named | Base.metadata.tables.keys()):
        conn.exec_driver_sql(f"REVOKE ALL ON {schema}.{table} FROM {name}")
        rights = RIGHTS[purpose].get(table)
        if rights:
            conn.exec_driver_sql(f"GRANT {', '.join(sorted(rights))} ON {schema}.{table} TO {name}")


def missing(conn: Connection, purpose: Purpose) -> list[str]:
    """The rights that the connected role lacks for a purpose, as `INSERT on artifacts`.

    The tables have to be there.
    """
    wanted = [(table, right) for table, rights in RIGHTS[purpose].items() for right in rights]
    lacks = text(
        "SELECT needed || ' on ' || named FROM unnest(CAST(:tables AS text[]),"
        " CAST(:rights AS text[])) AS wanted(named, needed)"
        # Rights in columns are not looked at: no purpose has those alone.
        " WHERE needed NOT LIKE '%(%' AND NOT has_table_privilege(quote_ident(named), needed)"
        " ORDER BY named, needed"
    )
    tables, rights = zip(*wanted, strict=True)
    given = {"tables": list(tables), "rights": list(rights)}
    return list(conn.execute(lacks, given).scalars())


def _check(conn: Connection, role: str) -> None:
    found = conn.execute(
        text(
            "SELECT rolsuper, pg_has_role(oid, (SELECT relowner FROM pg_class"
            " WHERE oid = 'generations'::regclass), 'MEMBER') AS owns"
            " FROM pg_roles WHERE rolname = :role"
        ),
        {"role": role},
    ).one_or_none()
    if found is None:
        raise RoleError(
            f"there is no role {role!r}; create it first: CREATE ROLE … LOGIN PASSWORD …"
        )
    if found.rolsuper or found.owns:
        why = "is a superuser" if found.rolsuper else "owns the tables"
        raise RoleError(f"role {role!r} {why}, and so may do everything: name another")


def _quoted(conn: Connection, role: str) -> str:
    return str(conn.execute(text("SELECT quote_ident(:role)"), {"role": role}).scalar_one())
