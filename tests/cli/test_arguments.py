"""Options in groups: what a person gives arrives in the groups' objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from monitor.cli.arguments import argument, numbers, option, settled, spread
from monitor.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Place:
    town: str = argument("Where.")
    floor: int = option(..., "How high.")
    lift: bool = option(False, "Whether there is a lift.")
    names: list[str] | None = option(None, "On the door.", "--name")


@dataclass(frozen=True, kw_only=True)
class Settings:
    floor: int
    lift: bool
    rent: float = 1.0


seen: list[Any] = []


def visit(context: typer.Context, place: Place, loud: bool = False) -> None:
    """Go there."""
    seen.append((context.info_name, place, loud))


@pytest.fixture
def run() -> Any:
    app = typer.Typer()
    app.command()(spread(visit))
    seen.clear()
    return lambda *given: CliRunner().invoke(app, given)


def test_options_arrive_in_their_group(run: Any) -> None:
    ended = run("Ulm", "--floor", "3", "--name", "a", "--name", "b", "--lift", "--loud")
    assert ended.exit_code == 0, ended.output
    assert seen == [("visit", Place(town="Ulm", floor=3, lift=True, names=["a", "b"]), True)]


def test_defaults_hold_and_what_must_be_given_is_asked_for(run: Any) -> None:
    assert run("Ulm", "--floor", "0").exit_code == 0
    assert seen[0][1] == Place(town="Ulm", floor=0, lift=False, names=None)
    assert run("Ulm").exit_code == 2
    assert "floor" in run("Ulm").output
    assert run("Ulm", "--floor", "0", "--no-lift").exit_code == 2


def test_help_comes_from_the_groups(run: Any) -> None:
    shown = run("--help").output
    assert all(text in shown for text in ("Go there.", "Where.", "How high.", "On the door."))


def test_settings_take_what_options_have_by_their_names() -> None:
    place = Place(town="Ulm", floor=2, lift=True)
    assert settled(Settings, place, floor=5) == Settings(floor=5, lift=True, rent=1.0)


def test_numbers_are_read_or_refused_by_the_name_of_their_option() -> None:
    assert numbers("1,2", int, "--sites") == (1, 2)
    with pytest.raises(BadInput, match=r"--sites: '1\.5': write whole numbers"):
        numbers("1.5", int, "--sites")
