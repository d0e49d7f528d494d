"""Covariates: where prompts differ most, read where the pack reads, and nothing else of the pack changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from monitor.errors import BadInput, PackError
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import load_model
from monitor.research.packs.covariates import leading, with_covariates
from monitor.research.texts import load_texts
from monitor.score.pack import load_pack
from monitor.values.scores import Replayed
from tests.scenes.packs import drawn, feature, on_cpu, pack_of


def test_a_pack_gets_the_components_of_its_models_prompts(
    tiny_folder: Path, texts_folder: Path, tmp_path: Path
) -> None:
    plain = pack_of(tiny_folder, [feature("toxic", drawn(1))])
    made = with_covariates(plain, tiny_folder, tmp_path / "out", 2, texts_folder)
    kept = load_pack(tmp_path / "out")
    assert kept.pack_id == made.pack_id != plain.pack_id
    assert [(one.name, one.site, one.region) for one in kept.covariates] == [
        ("prompt.1", 1, "prompt"),
        ("prompt.2", 1, "prompt"),
    ]
    assert kept.provenance["covariates"]["source"] == plain.pack_id
    assert kept.deepest_site == plain.deepest_site, "no block more is run"
    settings = on_cpu(tiny_folder)
    engine = ReplayEngine(load_model(settings, 1), kept.features, settings, kept.covariates)
    read = [one for one in engine.replay(load_texts(texts_folder).fit) if isinstance(one, Replayed)]
    values = np.stack([one.covariates for one in read])
    assert values.shape == (len(read), 2)
    assert np.isfinite(values).all()
    first, second = values.std(axis=0)
    assert first > second > 0


def test_components_are_orthonormal_ordered_and_have_one_sign() -> None:
    random = np.random.default_rng(2)
    data = (random.normal(size=(200, 6)) * [5, 3, 1, 0.1, 0.1, 0.1]).astype(np.float32) + 7
    found = leading(data, 3)
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-5)
    np.testing.assert_array_equal(np.abs(found).argmax(axis=1), [0, 1, 2])
    assert (found[np.arange(3), np.abs(found).argmax(axis=1)] > 0).all()
    np.testing.assert_allclose(leading(-data, 3), found, atol=1e-5)


def test_more_components_than_texts_allow_and_another_models_pack_are_refused(
    tiny_folder: Path, lively_folder: Path, texts_folder: Path, tmp_path: Path
) -> None:
    plain = pack_of(tiny_folder, [feature("toxic", drawn(1))])
    with pytest.raises(BadInput, match="benign exchanges allow 1 to"):
        with_covariates(plain, tiny_folder, tmp_path / "out", 500, texts_folder)
    with pytest.raises(PackError, match="does not fit"):
        with_covariates(plain, lively_folder, tmp_path / "out", 2, texts_folder)
    assert not (tmp_path / "out").exists()
