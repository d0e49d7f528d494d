"""What registered alternatives may say."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from monitor.settings import IdentitySettings


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"name": "b"}, "give one of adapter, model and steer, not none"),
        ({"name": "b", "adapter": "x", "model": "y"}, "not adapter and model"),
        ({"name": "b", "steer": {"feature": "toxic", "strength": 0.0}}, "finite number other than"),
        ({"name": "", "adapter": "x"}, "at least 1 character"),
        ({"name": "b", "adaptor": "x"}, "Extra inputs"),
    ],
)
def test_an_entry_that_is_none_is_refused(entry: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        IdentitySettings.model_validate({"alternatives": [entry]})


def test_a_name_stands_there_once() -> None:
    twice = [{"name": "b", "adapter": "x"}, {"name": "b", "adapter": "y"}]
    with pytest.raises(ValidationError, match="b stands there twice"):
        IdentitySettings.model_validate({"alternatives": twice})


def test_there_are_none_unless_registered() -> None:
    assert IdentitySettings().alternatives == ()
