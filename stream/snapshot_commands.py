"""`driftline snapshots ...`: the commands about the snapshots of a data directory."""

from pathlib import Path
from typing import Annotated

import typer

from .options import ConfigOption, DataDirOption, JsonOption, SetOption, print_result, settings_of

__all__ = ["snapshots_app"]

snapshots_app = typer.Typer(
    help="The snapshots in a data directory: list, show, verify, take, restore, prune, export, import."
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


@snapshots_app.command("restore")
def snapshots_restore(
    snapshot: Annotated[int, typer.Option("--at", metavar="ID", show_default=False)],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have the next start load an older snapshot, and replay the topic from there. No service may run."""
    from .inspection import restore_snapshot

    print_result(restore_snapshot(settings_of(config, None, data_dir, sets), snapshot), as_json, "snapshot")


@snapshots_app.command("prune")
def snapshots_prune(
    keep: Annotated[int | None, typer.Option(min=1, help="So many stay; snapshots.keep.")] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove all but the newest snapshots. No service may run: it prunes by itself (snapshots.keep)."""
    from .inspection import prune_snapshots

    print_result(prune_snapshots(settings_of(config, None, data_dir, sets), keep), as_json, "pruned")


@snapshots_app.command("export")
def snapshots_export(
    file: Annotated[Path, typer.Argument(show_default=False)],
    snapshot: Annotated[int | None, typer.Option("--at", metavar="ID", help="The newest.")] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a snapshot, raw vectors too, to one file from which another machine can start."""
    from .inspection import export_to

    print_result(export_to(settings_of(config, None, data_dir, sets), snapshot, file), as_json, "snapshot")


@snapshots_app.command("import")
def snapshots_import(
    file: Annotated[Path, typer.Argument(show_default=False)],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Begin a new data directory with a snapshot that was exported; `driftline serve` replays from there."""
    from .inspection import import_from

    print_result(import_from(settings_of(config, None, data_dir, sets), file), as_json, "snapshot")
