"""`driftline snapshots ...`: the commands about the snapshots of a data directory."""

from typing import Annotated

import typer

from .options import ConfigOption, DataDirOption, JsonOption, SetOption, print_result, settings_of

__all__ = ["snapshots_app"]

snapshots_app = typer.Typer(
    help="The snapshots in a data directory: list them, look at one, verify one, take one."
)


@snapshots_app.callback(invoke_without_command=True)
def snapshots_root(
    context: typer.Context,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    if context.invoked_subcommand is None:
        snapshots_list(config, data_dir, sets, as_json)
    elif config or data_dir or sets or as_json:
        raise typer.BadParameter(
            f"write options behind the command: snapshots {context.invoked_subcommand} ..."
        )


@snapshots_app.command("list")
def snapshots_list(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """The snapshots there are, the newest last."""
    from .inspection import list_snapshots

    print_result(list_snapshots(settings_of(config, None, data_dir, sets)), as_json, "snapshots")


@snapshots_app.command("show")
def snapshots_show(
    snapshot: Annotated[int, typer.Argument(metavar="ID", show_default=False)],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Everything that is known of one snapshot."""
    from .inspection import show_snapshot

    print_result(show_snapshot(settings_of(config, None, data_dir, sets), snapshot), as_json, "snapshot")


@snapshots_app.command("verify")
def snapshots_verify(
    snapshot: Annotated[
        int | None, typer.Argument(metavar="[ID]", help="The newest.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a snapshot through and compare every checksum. Ends with 5 when something is wrong."""
    from .inspection import verify_snapshot

    result = verify_snapshot(settings_of(config, None, data_dir, sets), snapshot)
    print_result(result, as_json, "verify")
    if result["problems"]:
        raise typer.Exit(5)


@snapshots_app.command("take")
def snapshots_take(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have the running service take a snapshot now."""
    from .control import ask

    answer = ask(settings_of(config, None, data_dir, sets).data_dir, "snapshot", timeout_s=600)
    print_result(answer, as_json, "taken")
