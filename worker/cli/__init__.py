"""The command `seedance`. Each module here has the commands of one kind; none decides anything.

Exit codes: 0 done, 1 the thing failed, 2 wrong usage or input (one line says what), 130 Ctrl-C.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

import click
from sqlalchemy.exc import DBAPIError

from api_client import ApiError, InvalidRequest
from models.budgets import BudgetExceeded
from models.intake import IdempotencyConflict
from worker import logs
from worker.cli import errors
from worker.embedded_errors import EmbeddedError
from worker.producer import UnknownGenerationError
from worker.settings import SettingsError

COMMANDS = {
    "demo": "demo",
    "up": "up",
    "migrate": "processes",
    "worker": "processes",
    "beat": "processes",
    "gateway": "gateway",
    "metrics": "metrics",
    "flower": "flower",
    "simulator": "processes",
    "generate": "generate",
    "show": "show",
    "list": "listing",
    "watch": "watch",
    "cancel": "cancel",
    "retry": "retry",
    "pause": "pausing",
    "resume": "pausing",
    "history": "history",
    "balance": "money",
    "cost": "money",
    "budget": "budget",
    "notices": "notices",
    "reconcile": "reconcile",
    "resolve": "resolve",
    "doctor": "doctor",
}
"""Each command and the module it lives in, which is imported when it is needed: a producer's
`seedance generate` waits neither for Celery nor for a simulator."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"worker.cli.{COMMANDS[cmd_name]}")
        name = "list_" if cmd_name == "list" else cmd_name
        command: click.Command = getattr(module, name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="seedance-worker", prog_name="seedance")
def cli() -> None:
    """Turns generation requests into Seedance 2.0 videos, each submitted exactly once.

    \b
    Try it, without a key and without paying:
      seedance demo                     everything once, against a simulated provider
      seedance up                       the whole service, until Ctrl-C
      seedance generate --text "A cat" --wait

    Commands take their settings from SEEDANCE_… variables; without SEEDANCE_DATABASE_URL they
    find the `seedance up` that runs in this folder. `seedance doctor` says what is wrong.
    """


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; what can go wrong is told in a line."""
    logs.configure("WARNING", service=False)
    try:
        code = cli.main(args=argv, prog_name="seedance", standalone_mode=False)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "seedance"
        return _fail(2, f"{where}: {error.format_message()} (see {where} --help)")
    except click.ClickException as error:
        return _fail(error.exit_code, error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return 130
    except SettingsError as error:
        return _fail(2, str(error))
    except (InvalidRequest, IdempotencyConflict) as error:
        return _fail(2, str(error))
    except BudgetExceeded as error:
        return _fail(1, str(error))
    except UnknownGenerationError as error:
        return _fail(1, str(error.args[0]))
    except (DBAPIError, ApiError, EmbeddedError) as error:
        return _fail(1, errors.explain(error))
    return code if isinstance(code, int) else 0


def _fail(code: int, message: str) -> int:
    click.echo(message, err=True)
    return code


def main() -> None:
    """The entry point."""
    sys.exit(run())
