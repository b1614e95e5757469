"""What the engine lets through when the database refuses something."""

import traceback

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from models.database import make_engine
from models.lifecycle import Status
from tests.integration import rows

SIGNED = "https://cdn.example/v.mp4?X-Amz-Signature=SECRET"


def test_an_error_shows_neither_parameters_nor_the_row(database_url):
    """PostgreSQL quotes the failing row in its DETAIL: signed addresses and prompts."""
    engine = make_engine(database_url)
    with engine.connect() as conn:
        generation_id = rows.make(conn, Status.RUNNING)
        statement = text("UPDATE generations SET video_url = :url, credit_cost = -1 WHERE id = :id")
        with pytest.raises(IntegrityError) as caught:
            conn.execute(statement, {"url": SIGNED, "id": generation_id})
    engine.dispose()

    shown = "".join(traceback.format_exception(caught.value))
    assert "SECRET" not in shown
    assert "ck_generations_credit_cost_positive" in shown, "what was refused is still told"
    assert caught.value.orig.diag.constraint_name == "ck_generations_credit_cost_positive"
