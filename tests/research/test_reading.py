"""One policy for what cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from monitor.errors import BadInput, ModelError
from monitor.replay.model import load_model
from monitor.replay.residuals import ResidualReader
from monitor.research.reading import (
    Reader,
    layers_of,
    load_whole,
    opened,
    replay_settings,
    response_residuals,
)
from monitor.research.texts import exchange
from monitor.values.features import Calibration
from monitor.values.prompts import Message, Prompt
from tests.scenes.models import PLAIN, save_tiny
from tests.scenes.packs import drawn, feature, on_cpu, readings

LEVEL = Calibration(tokens=(1.0,), means=(0.5,), deviations=(2.0,))


def said(*responses: str | None, role: str = "user") -> list[Prompt]:
    return [
        exchange((Message(role=role, content=f"Question {i}?"),), response)
        for i, response in enumerate(responses)
    ]


def reader(folder: Path, piece: int | None = None, lines: list[str] | None = None) -> Reader:
    return Reader(
        load_model(on_cpu(folder), 1),
        [feature("one", drawn(1), calibration=LEVEL), feature("two", drawn(2))],
        on_cpu(folder),
        (lambda line: None) if lines is None else lines.append,
        piece=piece,
    )


def test_texts_are_read_in_order_whatever_the_piece(tiny_folder: Path) -> None:
    prompts = said("Yes.", "No, never.", "Perhaps a little later.")
    lines: list[str] = []
    whole, tokens = reader(tiny_folder).read("texts", prompts)
    pieces, _ = reader(tiny_folder, 2, lines).read("texts", prompts)
    expected = readings(tiny_folder, reader(tiny_folder).features, prompts)
    np.testing.assert_allclose(whole, expected, rtol=1e-5)
    np.testing.assert_allclose(pieces, whole, rtol=1e-4, atol=1e-5)
    assert tokens[:, 0].tolist() == [len(p.response or "") for p in prompts]
    assert lines == ["reading texts: 2 of 3", "reading texts: 3 of 3"]
    none, _ = reader(tiny_folder).read("texts", [])
    assert none.shape == (0, 2)


def test_scores_are_standardised_and_absent_texts_are_nan(tiny_folder: Path) -> None:
    one = reader(tiny_folder)
    prompts = said("Yes.", None, "No.")
    scores, raw = one.scores("answers", prompts), one.read("answers", prompts, absent=True)[0]
    np.testing.assert_allclose(scores[[0, 2], 0], (raw[[0, 2], 0] - 0.5) / 2.0, rtol=1e-5)
    assert np.isnan(scores[1]).all()
    with pytest.raises(BadInput, match=r"answers, number 2 cannot be replayed: no_tokens"):
        one.read("answers", prompts)


def test_what_cannot_be_replayed_is_refused_even_where_absence_is_allowed(tmp_path: Path) -> None:
    refusing = "{% if messages[0]['role'] == 'tool' %}{{ raise_exception('no') }}{% endif %}"
    folder = save_tiny(tmp_path / "model", seed=3, template=refusing + PLAIN)
    prompts = [*said("Yes."), *said("No.", role="tool")]
    with pytest.raises(BadInput, match=r"answers, number 2 cannot be replayed: template_refused"):
        reader(folder).scores("answers", prompts)


def test_numbers_that_are_not_finite_are_the_models_fault(broken_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"not finite \(answers, number 1\)") as refused:
        reader(broken_folder).scores("answers", said("Yes."))
    assert "weights or dtype" in refused.value.hint
    residuals = ResidualReader(load_model(on_cpu(broken_folder), 1), on_cpu(broken_folder))
    with pytest.raises(ModelError, match="residuals that are not finite on 1 of 1"):
        response_residuals(residuals, said("Yes."), [1])


def test_a_response_without_a_token_has_no_residuals(tiny_folder: Path) -> None:
    residuals = ResidualReader(load_model(on_cpu(tiny_folder), 1), on_cpu(tiny_folder))
    assert response_residuals(residuals, said("Yes."), [0, 1]).shape == (1, 2, 32)
    with pytest.raises(BadInput, match="response 2 has no token"):
        response_residuals(residuals, said("Yes.", ""), [1])


def test_models_are_opened_as_deep_as_they_are_read(tiny_folder: Path) -> None:
    settings = replay_settings(tiny_folder, "cpu")
    assert (settings.dtype, layers_of(settings)) == ("float32", 4)
    assert replay_settings(tiny_folder, "cuda").dtype == "auto"
    assert load_whole(settings).answerer is not None
    with opened(settings, 1) as loaded:
        assert (len(loaded.blocks), loaded.answerer) == (2, None)
