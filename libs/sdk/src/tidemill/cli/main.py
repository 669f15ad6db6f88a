"""The command line: one door for a person to everything that the services do."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from tidemill.cli.answers import USAGE

# Where each command lives; a module is loaded when its command is asked for, so that `status` does not wait for what
# `check` needs.
_MODULES = {
    "up": "tidemill.cli.stack_commands:up",
    "down": "tidemill.cli.stack_commands:down",
    "status": "tidemill.cli.stack_commands:status",
    "logs": "tidemill.cli.stack_commands:logs",
    "doctor": "tidemill.cli.stack_commands:doctor",
    "check": "tidemill.cli.definition_commands:check",
    "apply": "tidemill.cli.definition_commands:apply",
    "diff": "tidemill.cli.definition_commands:diff",
    "views": "tidemill.cli.view_commands:views_app",
    "pipelines": "tidemill.cli.pipeline_commands:pipelines_app",
    "streams": "tidemill.cli.stream_commands:streams_app",
    "push": "tidemill.cli.push_command:push",
    "tail": "tidemill.cli.topic_commands:tail",
    "features": "tidemill.cli.feature_commands:features_app",
    "predict": "tidemill.cli.predict_command:predict",
    "runs": "tidemill.cli.model_commands:runs",
    "models": "tidemill.cli.model_commands:models_app",
    "monitor": "tidemill.cli.monitor_command:monitor",
    "incidents": "tidemill.cli.incident_commands:incidents_app",
    "retrain": "tidemill.cli.incident_commands:retrain",
    "dead-letters": "tidemill.cli.dead_letter_commands:dead_letters_app",
    "dataset": "tidemill.cli.dataset_command:dataset",
    "demo": "tidemill.demo.command:demo",
}


class _Commands(TyperGroup):
    """Loads a command's module when the command is asked for."""

    # Typer carries its own copy of click, whose types have no public name.
    def list_commands(self, ctx: Any) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _MODULES:
            return None
        found = _load(cmd_name)
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(add_completion=False)
            found.command(cmd_name)(function)
        command = get_command(found)
        command.name = cmd_name
        return command


def _load(name: str) -> typer.Typer | Callable[..., None]:
    """Return a command's function or group; where a package that it needs is missing, a command that says so."""
    module, _, attribute = _MODULES[name].partition(":")
    try:
        found: typer.Typer | Callable[..., None] = getattr(import_module(module), attribute)
    except ImportError as error:
        missing = error.name

        def unavailable() -> None:
            typer.echo(f"{name} needs {missing}, which is not here: pip install 'tidemill[stack,demo]'", err=True)
            raise typer.Exit(USAGE)

        unavailable.__doc__ = f"Needs {missing}, which is not installed."
        return unavailable
    return found


app = typer.Typer(
    cls=_Commands,
    name="tidemill",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 the answer is no, 2 usage, 3 not reachable.",
)


@app.callback()
def tidemill() -> None:
    """Keeps machine-learning models current with the stream they serve."""


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
