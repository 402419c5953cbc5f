"""The command line: what each command takes, and how it ends. What the commands do stands in modules of
their own, imported when they run, so that `driftline --help` is quick.

Results go to standard output, as text for people or with --json as one JSON document; progress and logs go
to standard error. Only `serve` logs to standard output: its log is its result. Exit codes stand in
docs/operations.md.
"""

import sys
from collections.abc import Callable, Coroutine
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ..errors import DriftlineError
from .drift_commands import drift_app
from .endings import exit_code, explanation
from .options import (
    ConfigOption,
    CreateOption,
    DataDirOption,
    JsonOption,
    LogOption,
    ModelOption,
    SetOption,
    collections_of,
    finish,
    print_result,
    settings_of,
)
from .snapshot_commands import snapshots_app

if TYPE_CHECKING:
    from .config import Settings
    from .events import Logger

__all__ = ["main"]

app = typer.Typer(
    name="driftline",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Keeps a vector index in step with a Kafka topic: key = id, value = vector, null = delete. "
    "Produced records are searchable within milliseconds; searches are asked and answered over topics.",
    epilog="Start with `driftline demo`. Without Kafka everything runs on a local log (`local:DIRECTORY`).",
)
app.add_typer(drift_app, name="drift")
app.add_typer(snapshots_app, name="snapshots")


def main() -> None:
    """Run the command line; ends the process."""
    try:
        app()
    except DriftlineError as error:
        _fail(error)
    except BaseExceptionGroup as group:
        error = explanation(group)
        if error is None:
            raise
        _fail(error)


def _fail(error: DriftlineError) -> NoReturn:
    print(f"driftline: {error}", file=sys.stderr)
    sys.exit(exit_code(error))


@app.callback(invoke_without_command=True)
def root(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        print(f"driftline {version('driftline')}")
        raise typer.Exit


@app.command()
def serve(
    config: ConfigOption = None,
    log: LogOption = None,
    data_dir: DataDirOption = None,
    dim: Annotated[
        int | None, typer.Option(help="Dimension of the vectors; else that of the first one.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="l2, ip or cosine.")] = None,
    model: ModelOption = None,
    create_topics: CreateOption = None,
    sets: SetOption = None,
) -> None:
    """Follow the vectors topic, answer the search topic, until SIGTERM or Ctrl-C.

    Starts from the newest snapshot in the data directory and replays what the topic holds since. Logs
    events to standard output: JSON lines, or colours on a terminal. Every collection that has a table in the
    configuration is served.
    """
    collections = collections_of(
        config, log, data_dir, sets,
        index__dim=dim, index__metric=metric, index__embedding_model=model, topics__create=create_topics,
    )  # fmt: skip
    from .service import serve as run

    _run(partial(run, collections), collections[0])


@app.command()
def gateway(
    config: ConfigOption = None,
    log: LogOption = None,
    create_topics: CreateOption = None,
    sets: SetOption = None,
) -> None:
    """Answer the search topic by asking all shards of a collection, until SIGTERM or Ctrl-C.

    Each request gets one reply, by its deadline; one that lacks partitions says which. Logs events to
    standard output.
    """
    from .gateway_service import serve_gateway as run

    settings = settings_of(config, log, None, sets, topics__create=create_topics)
    _run(partial(run, settings), settings)


def _run(program: Callable[["Logger"], Coroutine[Any, Any, None]], settings: "Settings") -> None:
    """Run a program that logs events until it is stopped."""
    import asyncio

    from .events import adopt_library_logs, make_logger

    logger = make_logger(settings.logging)
    adopt_library_logs(logger)
    try:
        asyncio.run(program(logger))
    except DriftlineError as error:
        logger.error("service.failed", reason=str(error), error=type(error).__name__)
        raise


@app.command()
def alias(
    name: Annotated[str | None, typer.Argument(metavar="ALIAS", show_default=False)] = None,
    collection: Annotated[str | None, typer.Argument(metavar="COLLECTION", show_default=False)] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Take the alias away.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also to one that is not ready.")] = False,
    create_topics: CreateOption = None,
    config: ConfigOption = None,
    log: LogOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which collection each alias means, or let one mean another collection from now on.

    Gateways with `gateway.alias` ask the collection that it means. COLLECTION has a table in the
    configuration.
    """
    from .aliases import aliases, switch

    settings = settings_of(config, log, None, sets, topics__create=create_topics)
    if name is None:
        print_result(finish(aliases(settings)), as_json, "aliases")
        return
    if (collection is None) != drop:
        raise typer.BadParameter("an alias needs a COLLECTION that it shall mean, or --drop")
    to = None if collection is None else settings_of(config, log, None, sets, collection=collection)
    print_result(finish(switch(settings, name, to, force=force)), as_json, "alias")


@app.command()
def feed(
    file: Annotated[
        Path, typer.Argument(help=".npy .npz .fvecs .bvecs .hdf5 .parquet or .jsonl", show_default=False)
    ],
    dataset: Annotated[
        str | None, typer.Option(help="Array, dataset, column or field of the vectors.")
    ] = None,
    ids: Annotated[
        str | None, typer.Option(help="Array, dataset, column or field of the ids; else 0, 1, 2...")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Feed so many vectors.")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Vectors a second; as fast as it goes.")
    ] = None,
    attributes: Annotated[bool, typer.Option(help="Feed attributes where the file has some.")] = True,
    model: ModelOption = None,
    create_topics: CreateOption = None,
    config: ConfigOption = None,
    log: LogOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Produce the vectors of a file to the vectors topic, one record each.

    Needs no running service. The result is a token, the offsets that `driftline search --after` can wait for.
    """
    from .feeding import feed as run

    settings = settings_of(
        config, log, data_dir, sets, index__embedding_model=model, topics__create=create_topics
    )
    result = finish(
        run(settings, file, dataset=dataset, ids=ids, limit=limit, rate=rate, attributes=attributes)
    )
    print_result(result, as_json, "feed")


@app.command()
def search(
    vector: Annotated[str | None, typer.Option(metavar="JSON", help="The query, as '[0.1, ...]'.")] = None,
    key: Annotated[str | None, typer.Option(help="Search with the vector of this id.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file of queries, in any format `feed` reads.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Array, dataset, column or field in the file.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask so many of the file's queries.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Hits per query.")] = 10,
    ef: Annotated[
        int | None, typer.Option(min=1, help="Width of the search: more is slower and finds more.")
    ] = None,
    chosen: Annotated[
        str | None,
        typer.Option("--filter", metavar="JSON", help="Hits with these attributes, as '{\"year\": 2001}'."),
    ] = None,
    after: Annotated[
        str | None, typer.Option(metavar="JSON", help="Wait for these offsets: what `feed` gave.")
    ] = None,
    deadline_ms: Annotated[int, typer.Option(min=1, help="Milliseconds to wait for an answer.")] = 5000,
    as_of: Annotated[
        int | None, typer.Option(metavar="ID", help="Search in this snapshot, in this process.")
    ] = None,
    show: Annotated[bool, typer.Option("--attributes/--no-attributes", help="Show attributes.")] = True,
    vectors: Annotated[bool, typer.Option("--vectors", help="With --json: the hits' vectors too.")] = False,
    model: ModelOption = None,
    config: ConfigOption = None,
    log: LogOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a running service over its topics, with one vector, one id, or a file of vectors.

    With --as-of no service is asked: the snapshot of the data directory answers as it was.
    """
    from .asking import search as run

    settings = settings_of(config, log, data_dir, sets, index__embedding_model=model)
    include = {*(["attributes"] if show else []), *(["vector"] if vectors and as_json else [])}
    result = finish(
        run(
            settings, vector=vector, key=key, file=file, dataset=dataset, limit=limit, k=k, ef=ef,
            after=after, deadline_ms=deadline_ms, include=include, filter=chosen, as_of=as_of,
        )
    )  # fmt: skip
    print_result(result, as_json, "search")


@app.command()
def status(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the service of a data directory how it is. Ends with 0 when it is ready, 1 when not yet, 2 when
    none answers."""
    from .control import ServiceUnreachable, ask

    settings = settings_of(config, None, data_dir, sets)
    try:
        answer = ask(settings.data_dir, "status")
    except ServiceUnreachable as error:
        print(f"driftline: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    print_result(answer, as_json, "status")
    raise typer.Exit(0 if answer["ready"] else 1)


@app.command()
def check(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the index of a data directory: graph, codes, raw vectors and digest. Ends with 5 when something
    is wrong.

    A running service checks what it serves; without one the newest snapshot is loaded and checked.
    """
    from .control import ServiceUnreachable, ask
    from .inspection import check_newest

    settings = settings_of(config, None, data_dir, sets)
    try:
        result = ask(settings.data_dir, "check", timeout_s=600)
    except ServiceUnreachable:
        result = check_newest(settings)
    print_result(result, as_json, "check")
    if result["problem"] or result.get("skipped"):
        raise typer.Exit(5)


@app.command()
def config(
    config: ConfigOption = None,
    log: LogOption = None,
    data_dir: DataDirOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every setting and its value, as file, environment and flags come to."""
    from .config import effective

    print_result(effective(settings_of(config, log, data_dir, sets)), as_json, "config")


@app.command()
def demo(as_json: JsonOption = False) -> None:
    """Show the whole path on real data, in under two minutes, on a local log in a temporary directory."""
    from .demo import run

    run(as_json)
