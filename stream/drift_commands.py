"""`driftline drift ...`: the commands about drift, frames and re-encoding."""

from typing import Annotated

import typer

from .options import (
    ConfigOption,
    DataDirOption,
    JsonOption,
    LogOption,
    SetOption,
    finish,
    print_result,
    settings_of,
)

__all__ = ["drift_app"]

drift_app = typer.Typer(help="How the data drifted, and what was done about it.")


@drift_app.callback(invoke_without_command=True)
def drift_root(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="Show so many of the newest events.")] = 30,
    config: ConfigOption = None,
    log: LogOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    if context.invoked_subcommand is None:
        drift_events(limit, config, log, data_dir, sets, as_json)
    elif config or log or data_dir or sets or as_json:
        raise typer.BadParameter(f"write options behind the command: drift {context.invoked_subcommand} ...")


@drift_app.command("events")
def drift_events(
    limit: Annotated[int, typer.Option(min=1, help="Show so many of the newest events.")] = 30,
    config: ConfigOption = None,
    log: LogOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how the data drifted: the events on the drift topic, and the encoder frames of the running
    service. What `driftline drift` alone does."""
    from .history import drift as run

    print_result(finish(run(settings_of(config, log, data_dir, sets), limit)), as_json, "drift")
