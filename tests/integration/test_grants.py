"""Database roles: each has what its kind of process needs, and nothing to hide or destroy with."""

import uuid
from collections.abc import Iterator

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from models import grants, intake
from models.base import Base
from models.database import make_engine
from models.grants import Purpose, RoleError
from tests.integration.conftest import text_request
from worker.checkup.finding import Level
from worker.checkup.postgres import database
from worker.cli import cli
from worker.cli.errors import database_problem
from worker.requests import new_generation


@pytest.fixture
def owner(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def role(owner: Engine) -> Iterator[str]:
    """A role of the server that may log in, and no more."""
    name = f'odd "role" {uuid.uuid4().hex[:8]}'
    with owner.begin() as conn:
        quoted = conn.execute(text("SELECT quote_ident(:n)"), {"n": name}).scalar_one()
        conn.exec_driver_sql(f"CREATE ROLE {quoted} LOGIN")
    yield name
    with owner.begin() as conn:
        conn.exec_driver_sql(f"DROP OWNED BY {quoted}")
        conn.exec_driver_sql(f"DROP ROLE {quoted}")


def give(owner: Engine, role: str, purpose: Purpose) -> None:
    with owner.begin() as conn:
        grants.grant(conn, role, purpose)


def refused(conn: Connection, statement: str) -> bool:
    """Whether a statement is refused for want of rights; what it does is undone."""
    try:
        with conn.begin_nested() as nested:
            conn.exec_driver_sql(statement)
            nested.rollback()
    except ProgrammingError as error:
        if isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            return True
        raise  # a slip in the statement
    except IntegrityError:
        pass  # it got as far as the table's rules
    return False


@pytest.fixture
def as_role(owner: Engine, role: str) -> Iterator[Connection]:
    """A connection with the role's rights."""
    with owner.connect() as conn:
        quoted = conn.execute(text("SELECT quote_ident(:n)"), {"n": role}).scalar_one()
        conn.exec_driver_sql(f"SET SESSION AUTHORIZATION {quoted}")
        yield conn
        conn.rollback()
        conn.exec_driver_sql("RESET SESSION AUTHORIZATION")
        conn.commit()


FORBIDDEN_TO_ALL = [
    "UPDATE ledger_entries SET amount = 0",
    "DELETE FROM ledger_entries",
    "TRUNCATE ledger_entries",
    "UPDATE operator_actions SET id = DEFAULT",
    "DELETE FROM operator_actions",
    "TRUNCATE generations CASCADE",
    "DROP TABLE generations",
    "ALTER TABLE ledger_entries DISABLE TRIGGER ALL",
    "CREATE TABLE mine (x int)",
    "UPDATE alembic_version SET version_num = '0001'",
    "SET session_replication_role = replica",
]
ALLOWED = {
    Purpose.WORKER: [
        "DELETE FROM generations",
        "UPDATE breakers SET name = name",
        "INSERT INTO flow_control (account) VALUES ('x')",
        "UPDATE flow_control SET rate = 1",
        "INSERT INTO workers (name, locked) VALUES ('x', true)",
        "UPDATE workers SET seen_at = now()",
        "DELETE FROM workers",
        "INSERT INTO pauses DEFAULT VALUES",
    ],
    Purpose.GATEWAY: [
        "UPDATE generations SET due_at = now(), lease = lease + 1",
        "SELECT count(*) FROM ledger_entries",
    ],
    Purpose.PRODUCER: [
        "UPDATE generations SET waited_until = now()",
        "SELECT count(*) FROM ledger_entries",
    ],
}
FORBIDDEN = {
    Purpose.WORKER: [],
    Purpose.GATEWAY: [
        "UPDATE generations SET status = 'cancelled'",
        "INSERT INTO generations (id) VALUES (gen_random_uuid())",
        "DELETE FROM generations",
        "UPDATE submit_attempts SET outcome = 'task'",
        "UPDATE breakers SET name = name",
        "UPDATE flow_control SET rate = NULL",
        "DELETE FROM workers",
        "INSERT INTO ledger_entries (amount) VALUES (1)",
        "SELECT * FROM uploads",
        "SELECT * FROM operator_actions",
    ],
    Purpose.PRODUCER: [
        "DELETE FROM generations",
        "UPDATE budgets SET amount = 1000000",
        "INSERT INTO budgets (tenant) VALUES ('x')",
        "UPDATE breakers SET name = name",
        "UPDATE flow_control SET rate = NULL",
        "DELETE FROM workers",
        "INSERT INTO workers (name, locked) VALUES ('x', true)",
        "SELECT * FROM uploads",
        "UPDATE submit_attempts SET outcome = 'task'",
        "INSERT INTO submit_attempts (seed) VALUES (1)",
        "DELETE FROM notices",
        "DELETE FROM pauses",
        "UPDATE generation_events SET event = 'x'",
    ],
}


@pytest.mark.parametrize("purpose", Purpose)
def test_a_role_may_do_its_work_and_nothing_that_hides_or_destroys(owner, role, as_role, purpose):
    give(owner, role, purpose)
    for statement in FORBIDDEN_TO_ALL + FORBIDDEN[purpose]:
        assert refused(as_role, statement), statement
    for statement in ALLOWED[purpose]:
        assert not refused(as_role, statement), statement


def test_every_table_is_thought_of():
    known = {table for rights in grants.RIGHTS.values() for table in rights}
    assert known - {"alembic_version"} <= set(Base.metadata.tables)
    assert set(grants.RIGHTS[Purpose.WORKER]) == {*Base.metadata.tables, "alembic_version"}


def test_what_a_role_had_before_is_taken_back(owner, role, as_role):
    give(owner, role, Purpose.WORKER)
    assert not refused(as_role, "DELETE FROM generations")
    as_role.commit()
    give(owner, role, Purpose.PRODUCER)
    assert refused(as_role, "DELETE FROM generations")
    assert refused(as_role, "SELECT * FROM uploads")


def test_what_a_role_lacks_is_told(owner, role, as_role):
    give(owner, role, Purpose.PRODUCER)
    assert grants.missing(as_role, Purpose.PRODUCER) == []
    lacks = grants.missing(as_role, Purpose.WORKER)
    assert "DELETE on generations" in lacks
    assert "SELECT on uploads" in lacks
    with owner.connect() as conn:
        assert grants.missing(conn, Purpose.WORKER) == []


def test_a_role_without_rights_is_told_how_to_get_them(as_role):
    with pytest.raises(ProgrammingError) as refusal:
        as_role.execute(text("SELECT 1 FROM generations"))
    said = database_problem(refusal.value)
    assert "permission denied" in said
    assert "seedance migrate --grant" in said


def test_only_an_ordinary_role_that_exists_gets_rights(owner):
    with owner.connect() as conn:
        with pytest.raises(RoleError, match="there is no role 'nobody-here'; create it first"):
            grants.grant(conn, "nobody-here", Purpose.WORKER)
        with pytest.raises(RoleError, match="role 'seedance' is a superuser"):
            grants.grant(conn, "seedance", Purpose.WORKER)


def test_an_owner_is_no_worker(owner, role):
    with owner.connect() as conn:
        quoted = conn.execute(text("SELECT quote_ident(:n)"), {"n": role}).scalar_one()
        conn.exec_driver_sql(f"ALTER TABLE generations OWNER TO {quoted}")
        with pytest.raises(RoleError, match="owns the tables"):
            grants.grant(conn, role, Purpose.WORKER)
        conn.rollback()


def test_the_command_grants_after_migrating(database_url, role, as_role):
    env = {"SEEDANCE_DATABASE_URL": database_url}
    done = CliRunner().invoke(cli, ["migrate", "--grant", f"{role}=producer"], env=env)
    assert done.exit_code == 0, done.output
    assert f"role {role} has the rights of a producer" in done.output
    intake.accept(as_role, new_generation(text_request()))
    assert refused(as_role, "DELETE FROM generations")


def test_the_doctor_says_what_a_role_lacks(owner, role, make_runtime):
    give(owner, role, Purpose.WORKER)
    with owner.begin() as conn:
        quoted = conn.execute(text("SELECT quote_ident(:n)"), {"n": role}).scalar_one()
        conn.exec_driver_sql(f"REVOKE ALL ON artifacts, usual_times FROM {quoted}")
    url = owner.url.set(username=role).render_as_string(hide_password=False)
    rt = make_runtime(database_url=url)
    checks = {one.name: one for one in database(rt.settings).checks}
    assert "rights" in checks, checks
    check = checks["rights"]
    assert check.level is Level.WRONG
    assert check.found.startswith(f"the role {role} lacks DELETE on artifacts")
    assert check.found.endswith("and 4 more")


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--grant", "x=admin"], 2, "allowed: worker, gateway, producer"),
        (["--grant", "nobody-here"], 1, "there is no role 'nobody-here'"),
        (["--grant", "x", "--check"], 2, "name one of them"),
    ],
)
def test_the_command_refuses_what_it_cannot_grant(database_url, options, code, said):
    env = {"SEEDANCE_DATABASE_URL": database_url}
    done = CliRunner().invoke(cli, ["migrate", *options], env=env)
    assert done.exit_code == code, done.output
    assert said in done.output
