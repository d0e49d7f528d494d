"""Quickly made values are what plain frozen dataclasses are, but for the time it takes to make them."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace

import pytest

from monitor.ingest.exchange import Exchange
from monitor.values.making import quickly_made
from monitor.values.prompts import Message, Prompt, RawRecord, RecordKey
from monitor.values.scores import Replayed, ScoredPrompt


def _odd(self) -> None:
    if self.cls < 0:
        raise ValueError("cls must not be negative")
    object.__setattr__(self, "doubled", 2 * self.cls)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Plain:
    """Fields named as what the made ``__init__`` works with."""

    cls: int
    twin: str = "none"
    absent: tuple[int, ...] = ()
    set_attribute: list[int] = field(default_factory=list)
    doubled: int = 0

    __post_init__ = _odd


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Quick:
    """The same, quickly made."""

    cls: int
    twin: str = "none"
    absent: tuple[int, ...] = ()
    set_attribute: list[int] = field(default_factory=list)
    doubled: int = 0

    __post_init__ = _odd


def test_it_holds_what_it_was_given_and_its_defaults() -> None:
    for given in ({}, {"twin": "a", "absent": (1,), "set_attribute": [3]}):
        assert asdict(Quick(cls=4, **given)) == asdict(Plain(cls=4, **given))
    assert Quick(cls=1).set_attribute is not Quick(cls=1).set_attribute


def test_it_refuses_what_the_dataclass_refuses() -> None:
    for made in (Plain, Quick):
        with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'cls'"):
            made()
        with pytest.raises(TypeError, match="unexpected keyword argument 'more'"):
            made(cls=1, more=2)
        with pytest.raises(TypeError, match="positional"):
            made(1)
        with pytest.raises(ValueError, match="must not be negative"):
            made(cls=-1)


def test_it_cannot_be_changed() -> None:
    value = Quick(cls=1)
    assert type(value) is Quick
    with pytest.raises(FrozenInstanceError):
        value.cls = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del value.cls
    with pytest.raises((AttributeError, TypeError)):
        value.more = 2  # type: ignore[attr-defined]


def test_it_is_compared_copied_and_shown_as_the_dataclass_is() -> None:
    one, other = Quick(cls=1), Quick(cls=2)
    assert one == Quick(cls=1) != other
    assert one < other
    assert repr(one) == repr(Plain(cls=1)).replace("Plain", "Quick")
    assert replace(one, cls=5).doubled == 10
    assert copy.deepcopy(one) == one
    assert pickle.loads(pickle.dumps(one)) == one
    assert str(inspect.signature(Quick)) == str(inspect.signature(Plain))


@pytest.mark.parametrize(
    "made", [RawRecord, RecordKey, Message, Prompt, Exchange, Replayed, ScoredPrompt]
)
def test_the_values_of_a_records_path_are_made_so(made: type) -> None:
    """A field that is left out is its default, whoever adds one."""
    assert hasattr(made.__init__, "__wrapped__")
    assert [f.name for f in fields(made)] == list(inspect.signature(made).parameters)


def test_it_has_no_subclass() -> None:
    with pytest.raises(TypeError, match="Further: a quickly made value"):

        class Further(Quick):
            pass


def test_other_classes_are_refused() -> None:
    @dataclass(frozen=True)
    class Open:
        a: int

    with pytest.raises(TypeError, match="Open: expected"):
        quickly_made(Open)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Private:
        _a: int

    with pytest.raises(TypeError, match="Private: expected"):
        quickly_made(Private)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Child(Plain):
        more: int = 0

    with pytest.raises(TypeError, match="Child: expected"):
        quickly_made(Child)
