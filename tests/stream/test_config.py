"""Configuration: three layers in rising order, and what is said of a name or value that is wrong."""

import inspect
import json
from pathlib import Path

import pytest
from driftline.errors import ConfigError
from driftline.index.budget import Budget
from driftline.index.canary import CanarySettings
from driftline.index.drift import DriftSettings
from driftline.stream.config import Settings, Sourced, describe, effective, load


def write(directory: Path, text: str) -> Path:
    file = directory / "driftline.toml"
    file.write_text(text)
    return file


def refusal(file: Path | None = None, environment: dict[str, str] | None = None, **flags: object) -> str:
    given = {name.replace("__", "."): Sourced(value, f"flag --{name}") for name, value in flags.items()}
    with pytest.raises(ConfigError) as refused:
        load(file, environment or {}, given)
    return str(refused.value)


def test_defaults_run_on_the_local_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing configured: the local log in the data directory, topics created there."""
    monkeypatch.chdir(tmp_path)
    settings = load(None, {})
    assert settings.log_url == "local:driftline-data/log"
    assert settings.creates_topics
    assert settings.index.dim is None
    assert settings == Settings()


def test_layers_in_rising_order(tmp_path: Path) -> None:
    """File below environment below flags, key by key."""
    file = write(tmp_path, "[index]\ndim = 1\nm = 8\nseed = 5\n[topics]\nvectors = 'file'\n")
    environment = {"DRIFTLINE_INDEX__DIM": "2", "DRIFTLINE_INDEX__M": "9", "UNRELATED": "x"}
    settings = load(file, environment, {"index.dim": Sourced(3, "flag --dim")})
    assert (settings.index.dim, settings.index.m, settings.index.seed) == (3, 9, 5)
    assert settings.topics.vectors == "file"


def test_where_the_file_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--config, else DRIFTLINE_CONFIG, else ./driftline.toml if it exists."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "[index]\ndim = 1")
    other = tmp_path / "other.toml"
    other.write_text("[index]\ndim = 2")
    third = tmp_path / "third.toml"
    third.write_text("[index]\ndim = 3")
    environment = {"DRIFTLINE_CONFIG": str(other)}
    assert load(None, {}).index.dim == 1
    assert load(None, environment).index.dim == 2
    assert load(third, environment).index.dim == 3


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A file that was named must be there, and be TOML."""
    assert "none.toml" in refusal(tmp_path / "none.toml")
    assert "is not TOML" in refusal(write(tmp_path, "index = ["))
    assert "expected a table, [index]" in refusal(write(tmp_path, "index = 3"))


def test_unknown_names_are_refused_with_the_nearest(tmp_path: Path) -> None:
    """In the file and in the environment, with the source and what was probably meant."""
    said = refusal(write(tmp_path, "[index]\nmetrik = 'l2'"))
    assert "index.metrik" in said
    assert "driftline.toml" in said
    assert "index.metric" in said
    said = refusal(environment={"DRIFTLINE_INDX__DIM": "3"})
    assert "DRIFTLINE_INDX__DIM" in said
    assert "DRIFTLINE_INDEX__DIM" in said
    assert "no such setting" in refusal(nonsense=1)


@pytest.mark.parametrize(
    ("variable", "value", "name", "allowed"),
    [
        ("DRIFTLINE_INDEX__METRIC", "euclid", "index.metric", "'l2', 'ip' or 'cosine'"),
        ("DRIFTLINE_INDEX__DIM", "5000", "index.dim", "4096"),
        ("DRIFTLINE_INDEX__DIM", "many", "index.dim", "integer"),
        ("DRIFTLINE_INDEX__M", "1", "index.m", "2"),
        ("DRIFTLINE_TOPICS__CREATE", "maybe", "topics.create", "boolean"),
        ("DRIFTLINE_TOPICS__SEARCH", "no spaces", "topics.search", "pattern"),
        ("DRIFTLINE_LOG", "kafka", "log", "kafka:HOST:PORT"),
        ("DRIFTLINE_SNAPSHOTS__EVERY_SECONDS", "inf", "snapshots.every_seconds", "finite"),
        ("DRIFTLINE_LOGGING__FORMAT", "xml", "logging.format", "'auto', 'json' or 'console'"),
    ],
)
def test_wrong_values_are_refused(variable: str, value: str, name: str, allowed: str) -> None:
    """With the setting's full name, the value, the source it came from, and what is allowed."""
    said = refusal(environment={variable: value})
    assert said.startswith(f"{name} = {value} (environment variable {variable})")
    assert allowed in said


def test_a_flag_is_named_as_the_source() -> None:
    """The highest layer that holds the value is the one that is blamed."""
    assert "(flag --index__dim)" in refusal(environment={"DRIFTLINE_INDEX__DIM": "3"}, index__dim="x")


def test_the_floor_is_below_the_budget() -> None:
    """A budget that is lower than its floor would mean nothing."""
    assert "reencode.floor = 0.3" in refusal(reencode__budget=0.2, reencode__floor=0.3)
    assert load(None, {}, {"reencode.floor": Sourced(0.25, "flag")}).reencode.floor == 0.25


def test_reencode_settings_are_those_of_a_budget() -> None:
    """The same defaults, though written twice."""
    ours = Settings().reencode
    assert (ours.budget, ours.floor) == inspect.getfullargspec(Budget).defaults


def test_topics_must_differ() -> None:
    """Two roles on one topic would feed the service its own output."""
    assert "driftline.replies" in refusal(environment={"DRIFTLINE_TOPICS__SEARCH": "driftline.replies"})


def test_every_setting_is_described() -> None:
    """What `driftline config` lists: a meaning for each, and a value for each."""
    assert describe().keys() == effective(Settings()).keys()
    assert all(describe().values())


def test_settings_of_the_index_are_its_own() -> None:
    """The same names and defaults, though written twice."""
    assert DriftSettings(**Settings().drift.model_dump()) == DriftSettings()
    assert CanarySettings(**Settings().canary.model_dump()) == CanarySettings()


def test_the_documentation_lists_every_setting() -> None:
    """docs/operations.md has a line for each, with its default and meaning, as they stand in the code."""
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
    for name, value in effective(Settings()).items():
        default = "" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"
        assert f"\n| `{name}` | {default} | {describe()[name]} |\n" in page


def test_settings_are_frozen() -> None:
    """Read once: nobody changes them afterwards."""
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.index.dim = 3  # type: ignore[misc]
