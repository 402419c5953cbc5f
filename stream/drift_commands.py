"""`driftline drift ...`: the commands about drift, frames and re-encoding."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from .reencoding import Action

__all__ = ["drift_app"]

LIMIT = 30  # events
LimitOption = Annotated[
    int | None, typer.Option(min=1, help="Show so many of the newest events.", show_default=str(LIMIT))
]

drift_app = typer.Typer(help="How the data drifted, and what was done about it.")


@drift_app.callback(invoke_without_command=True)
def drift_root(
    context: typer.Context,
    limit: LimitOption = None,
    config: ConfigOption = None,
    log: LogOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    if context.invoked_subcommand is None:
        drift_events(limit, config, log, data_dir, sets, as_json)
    elif limit or config or log or data_dir or sets or as_json:
        raise typer.BadParameter(f"write options behind the command: drift {context.invoked_subcommand} ...")


@drift_app.command("events")
def drift_events(
    limit: LimitOption = None,
    config: ConfigOption = None,
    log: LogOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how the data drifted: the events on the drift topic, and the encoder frames of the running
    service. What `driftline drift` alone does."""
    from .history import drift as run

    print_result(finish(run(settings_of(config, log, data_dir, sets), limit or LIMIT)), as_json, "drift")


@drift_app.command("report")
def drift_report(
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write one HTML page that needs nothing else.", show_default=False),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="A date, a time (2026-11-21T18:30), or how long ago: 30m, 12h, 7d."
        ),
    ] = None,
    config: ConfigOption = None,
    log: LogOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw how the data drifted: fit loss, recall, frames, the dimensions that drifted, ingest rate.

    With --json the same data are printed.
    """
    from dataclasses import asdict

    from .report import read_report as run

    if out is None and not as_json:
        raise typer.BadParameter("say where the page goes: --out report.html; or ask for the data: --json")
    report = finish(run(settings_of(config, log, data_dir, sets), since))
    if out is not None:
        from .report_page import write_page

        write_page(report, out)
    print_result({"out": None if out is None else str(out), **asdict(report)}, as_json, "report")


@drift_app.command("watch")
def drift_watch(
    config: ConfigOption = None,
    log: LogOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
) -> None:
    """Watch drift, frames and re-encoding live, until Ctrl-C.

    Where standard output is no terminal, a line for each event.
    """
    from .watch import watch as run

    finish(run(settings_of(config, log, data_dir, sets)))


@drift_app.command("reencode")
def drift_reencode(
    now: Annotated[bool, typer.Option("--now", help="Begin, whether or not the data drifted.")] = False,
    pause: Annotated[bool, typer.Option("--pause", help="Move no more rows until --resume.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="End; rows that have moved stay.")] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Watch the running service encode rows anew, to the end; or begin, pause, resume or cancel that.

    An interrupt ends the watching only. With --json the state is printed at once.
    """
    from .reencoding import watch

    given: dict[Action, bool] = {"now": now, "pause": pause, "resume": resume, "cancel": cancel}
    chosen: list[Action] = [action for action, wanted in given.items() if wanted]
    if len(chosen) > 1:
        raise typer.BadParameter(f"one of them at a time: --{' --'.join(chosen)}")
    action = chosen[0] if chosen else None
    to_the_end = not as_json and action in (None, "now", "resume")
    settings = settings_of(config, None, data_dir, sets)
    print_result(watch(settings, action, to_the_end=to_the_end), as_json, "reencode")
