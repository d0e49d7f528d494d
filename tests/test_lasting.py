"""What is loaded is left out of the garbage collector's later rounds."""

from __future__ import annotations

import gc
import weakref

import pytest

from monitor.lasting import keep_loaded


class Ring:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()


def test_what_is_garbage_already_goes_and_what_is_held_is_looked_at_no_more() -> None:
    ring, held = weakref.ref(Ring()), Ring()
    keep_loaded()
    assert ring() is None
    assert gc.get_freeze_count() > 10_000
    assert not any(one is held for one in gc.get_objects())


def test_garbage_that_comes_later_is_still_collected() -> None:
    keep_loaded()
    ring = weakref.ref(Ring())
    gc.collect()
    assert ring() is None
