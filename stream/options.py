"""What the commands share: options that many take, settings from them, and how a result is printed."""

from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ..errors import ConfigError

if TYPE_CHECKING:
    from .config import Settings, Sourced

__all__ = [
    "ConfigOption",
    "CreateOption",
    "DataDirOption",
    "JsonOption",
    "LogOption",
    "ModelOption",
    "SetOption",
    "collections_of",
    "finish",
    "print_result",
    "settings_of",
]

Result = TypeVar("Result")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file with settings; ./driftline.toml if it exists."),
]
LogOption = Annotated[
    str | None,
    typer.Option(
        "--log", metavar="URL", help="kafka:HOST:PORT[,...] or local:DIRECTORY; the data directory's own."
    ),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Snapshots and control socket; ./driftline-data."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any setting, as `driftline config` names it. Repeatable."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
CreateOption = Annotated[
    bool | None,
    typer.Option(
        "--create-topics/--no-create-topics", help="Create topics that are missing; yes on a local log."
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--embedding-model", metavar="NAME", help="The model the vectors are of; others are refused."
    ),
]


def settings_of(
    config: Path | None, log: str | None, data_dir: Path | None, sets: list[str] | None, **flags: object
) -> "Settings":
    """Settings from file, environment and flags; a flag that was not given is None."""
    from .config import load

    return load(config, None, _flags(log, data_dir, sets, flags))


def collections_of(
    config: Path | None, log: str | None, data_dir: Path | None, sets: list[str] | None, **flags: object
) -> "list[Settings]":
    """The same of every collection that has a table."""
    from .config import load_collections

    return load_collections(config, None, _flags(log, data_dir, sets, flags))


def _flags(
    log: str | None, data_dir: Path | None, sets: list[str] | None, flags: Mapping[str, object]
) -> "dict[str, Sourced]":
    from .config import Sourced, secrets

    given = {
        "log": log,
        "data_dir": data_dir,
        **{name.replace("__", "."): value for name, value in flags.items()},
    }
    layer = {
        name: Sourced(value, f"flag --{name.rpartition('.')[2].replace('_', '-')}")
        for name, value in given.items()
        if value is not None
    }
    for text in sets or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: expected NAME=VALUE")
        if name.strip() in secrets():
            raise ConfigError(
                f"--set {name.strip()}: a command line is seen by everybody on the machine; "
                f"set {name.strip()}_file, or the environment variable"
            )
        layer[name.strip()] = Sourced(value, "flag --set")
    return layer


def finish(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a command that talks to the log. What libraries log meanwhile is dropped: our own error
    explains."""
    import asyncio
    import logging

    logging.getLogger().addHandler(logging.NullHandler())
    return asyncio.run(work)


def print_result(result: Mapping[str, Any], as_json: bool, kind: str) -> None:
    if as_json:
        import json

        print(json.dumps(result, default=str))
    else:
        from .tables import show

        show(kind, result)
