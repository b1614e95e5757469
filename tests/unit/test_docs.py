"""What the documents say is what the code does."""

import re
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from models.lifecycle import TRANSITIONS
from models.tables import Generation
from worker.cli import COMMANDS
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
LIFECYCLE = (ROOT / "docs" / "lifecycle.md").read_text()


def test_the_diagram_shows_every_transition_and_no_other():
    drawn = set(re.findall(r"^\s+(\w+) --> (\w+): (\w+)$", LIFECYCLE, re.M))
    allowed = {
        (str(source), str(transition.target), str(event))
        for event, transition in TRANSITIONS.items()
        for source in transition.sources
    }
    assert drawn == allowed


def test_the_readme_has_a_row_for_every_setting_and_no_other():
    rows = dict(re.findall(r"^\| `(SEEDANCE_\w+)` \| (.*?) \| .+ \|$", README, re.M))
    assert rows.keys() == {f"SEEDANCE_{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_readme_has_each_settings_default_and_meaning(name: str):
    field = Settings.model_fields[name]
    [(default, meaning)] = re.findall(
        rf"^\| `SEEDANCE_{name.upper()}` \| (.*?) \| (.+) \|$", README, re.M
    )
    assert meaning == field.description
    if field.default is PydanticUndefined:
        assert default == "needed"
    elif isinstance(field.default, bool):
        assert default == str(field.default).lower()
    elif isinstance(field.default, int | float):
        assert float(default.strip("`")) == field.default
    else:
        assert default.strip("`") == ("" if field.default == () else str(field.default))


def test_the_readme_names_every_command():
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", README), command


def test_every_local_link_leads_somewhere():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_table_has_the_columns_that_are_promised():
    promised = {
        "id", "status", "remote_task_id", "remote_status", "request", "idempotency_key", "tenant",
        "priority", "estimated_cost", "credit_cost", "error_code", "error_message", "video_url",
        "last_frame_url", "due_at", "lease", "created_at", "submitted_at", "finished_at",
    }  # fmt: skip
    assert promised <= {column.name for column in Generation.__table__.columns}
