"""Addresses that lead through a pooler: what is asked there, and what of PostgreSQL itself."""

import pytest
from psycopg.conninfo import conninfo_to_dict

from models.database import direct_dsn, dsn, make_engine, normalise_url, pooled

POOLED = "postgresql://u:p%40ss@pool:6432/db?sslmode=require&pooler=transaction"


@pytest.mark.parametrize(
    ("place", "direct"),
    [
        ("pg:5433", "postgresql://u:p%40ss@pg:5433/db?sslmode=require"),
        ("pg", "postgresql://u:p%40ss@pg:5432/db?sslmode=require"),
        ("/run/pg:5433", "postgresql://u:p%40ss@/db?host=%2Frun%2Fpg&port=5433&sslmode=require"),
    ],
)
def test_what_needs_a_session_goes_to_postgresql_itself(place, direct):
    url = normalise_url(f"{POOLED}&direct={place}")
    assert pooled(url)
    assert dsn(url) == "postgresql://u:p%40ss@pool:6432/db?sslmode=require"
    assert sorted(direct_dsn(url)) == sorted(direct)
    assert direct_dsn(url).split("?")[0] == direct.split("?")[0]


def test_without_a_pooler_there_is_one_way():
    url = normalise_url("postgresql://u@pg/db")
    assert not pooled(url)
    assert dsn(url) == direct_dsn(url) == "postgresql://u@pg/db"


def test_libpq_reads_spaces_and_signs_as_sqlalchemy_does():
    options = "host=%2Fmy%20data%2Fa%2Bb&options=-c%20search_path%3Dmine"
    url = normalise_url(f"postgresql://u:p%20a%2Bs%3F@/db?{options}")
    assert conninfo_to_dict(dsn(url)) == {
        "user": "u",
        "password": "p a+s?",
        "dbname": "db",
        "host": "/my data/a+b",
        "options": "-c search_path=mine",
    }


def test_nothing_of_a_session_is_relied_on_behind_a_pooler():
    engine = make_engine(f"{POOLED}&direct=pg")
    _, options = engine.dialect.create_connect_args(engine.url)
    engine.dialect.dispatch.do_connect(engine.dialect, None, [], options)
    assert "pooler" not in options
    assert "direct" not in options
    assert options["sslmode"] == "require"
