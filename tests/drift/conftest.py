from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from monitor.values.drift import Window
from monitor.values.scores import Bucket
from tests.drift import simulation


@pytest.fixture
def window_of() -> Callable[..., Window]:
    return simulation.window_of


@pytest.fixture
def bucket_of() -> Callable[..., Bucket]:
    return simulation.bucket_of


@pytest.fixture
def clustered() -> Callable[..., np.ndarray]:
    return simulation.clustered
