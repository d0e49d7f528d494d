from __future__ import annotations

import numpy as np

from monitor.research.judge.redundancy import Redundancy


def test_overlap_is_with_a_stronger_feature_and_the_smaller_correlation() -> None:
    everywhere = np.array([[1, 0.99, 0.5], [0.99, 1, 0.6], [0.5, 0.6, 1]])
    benign = np.array([[1, 0.7, 0.9], [0.7, 1, 0.8], [0.9, 0.8, 1]])
    found = Redundancy(everywhere=everywhere, benign=benign, cosines=np.eye(3))
    strength = np.array([2.0, 3.0, 1.0])
    assert found.overlap(1, strength) == (0.0, None)
    assert found.overlap(0, strength) == (0.7, 1)
    assert found.overlap(2, strength) == (0.6, 1)
    # Of two that are equally strong the first stands.
    assert found.overlap(0, np.ones(3)) == (0.0, None)
    assert found.overlap(1, np.ones(3)) == (0.7, 0)
