"""What the documents say is what the code does."""

import importlib
import pkgutil
import re
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

import models
from models.base import Base
from models.lifecycle import TRANSITIONS
from models.tables import Generation
from worker import celeryconfig
from worker.app import app
from worker.cli import COMMANDS
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
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


def rows_of(heading: str) -> list[tuple[list[str], str]]:
    """Of the table under a heading of the architecture: the names, and what is said of them."""
    section = ARCHITECTURE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \| (.+) \|$", section, re.M)
    return [(re.findall(r"`([\w.*]+)`", names), said) for names, said in rows]


def test_the_architecture_names_every_table_and_no_other():
    for module in pkgutil.walk_packages(models.__path__, "models."):
        importlib.import_module(module.name)
    tables = set(Base.metadata.tables)
    assert sorted(name for names, _ in rows_of("Tables") for name in names) == sorted(tables)
    drawn = set(re.findall(r'\[\("(\w+)"\)\]', ARCHITECTURE))
    assert drawn
    assert drawn <= tables


def test_the_architecture_names_every_queue_and_the_tasks_that_go_there():
    app.loader.import_default_modules()
    sent: dict[str, set[str]] = {queue.name: set() for queue in celeryconfig.task_queues}
    for task in (name for name in app.tasks if name.startswith("seedance.")):
        routes = celeryconfig.task_routes.items()
        queue = next(route["queue"] for pattern, route in routes if fnmatch(task, pattern))
        sent[queue].add(task.removeprefix("seedance."))
    told = {names[0]: set(re.findall(r"`(\w+)`", said)) for names, said in rows_of("Queues")}
    assert told == sent


def test_the_diagram_has_the_stages_and_the_parts_of_upkeep():
    told = {names[0]: set(re.findall(r"`(\w+)`", said)) for names, said in rows_of("Queues")}
    by_beat = set(celeryconfig.beat_schedule)
    by_dispatchers = told["seedance.stages"] | told["seedance.upkeep"] - by_beat
    for label, tasks in (("threads", by_dispatchers), ("beat", by_beat)):
        [drawn] = re.findall(rf'\["{label}: (.+?)"\]', ARCHITECTURE)
        assert {name.replace(" ", "_") for name in drawn.split(" · ")} == tasks
    assert by_beat < told["seedance.upkeep"]


def test_the_architecture_names_no_module_that_there_is_not():
    for names, _ in rows_of("Modules"):
        package = names[0].rpartition(".")[0]
        for name in names:
            module = name if "." in name else f"{package}.{name}"
            assert find_spec(module.removesuffix(".*")), module
