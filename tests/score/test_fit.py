"""Does a pack fit a model? Every difference is told, and the shipped pack is found by its model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from monitor.errors import PackError
from monitor.score.fit import fit_problems, pack_or_shipped, require_fit, shipped_pack
from monitor.score.pack import SHIPPED, load_pack
from monitor.values.identity import ModelIdentity
from tests.score.packs import pack


def test_fit_problems_say_what_differs() -> None:
    model = pack().model
    assert fit_problems(pack(), model) == []
    assert fit_problems(pack(), replace(model, model_id="elsewhere", template_hash="c")) == []
    wrong = replace(model, hidden_size=16, weights_hash="b" * 64)
    problems = fit_problems(pack(), wrong)
    assert len(problems) == 2
    assert "8 wide" in problems[0]
    assert "16" in problems[0]
    assert "weights differ" in problems[1]


def test_every_field_that_can_differ_has_a_sentence_and_a_refusal_tells_all() -> None:
    pack = load_pack(SHIPPED / "smollm2-135m-instruct")
    other = ModelIdentity(
        model_id="other",
        architecture="gpt2",
        hidden_size=1,
        layers=1,
        vocab_size=1,
        weights_hash="a" * 64,
        tokenizer_hash="b" * 64,
        template_hash="c" * 64,
    )
    assert len(fit_problems(pack, other)) == len(pack.model.differences(other)) == 7
    with pytest.raises(PackError, match="does not fit the served model: the pack reads a ") as no:
        require_fit(pack, other, "the served model")
    assert "chat template differs" in str(no.value)
    assert "monitor pack build contrast" in no.value.hint
    require_fit(pack, pack.model)


def test_a_fine_tune_of_the_packs_model_is_let_pass_on_demand_only() -> None:
    pack = load_pack(SHIPPED / "smollm2-135m-instruct")
    tuned = replace(pack.model, weights_hash="0" * 64)
    assert shipped_pack(tuned) is None
    with pytest.raises(PackError, match="no pack is shipped for the model in /models/x"):
        pack_or_shipped(None, tuned, where=Path("/models/x"), hint="")
    with pytest.raises(PackError, match="weights differ"):
        require_fit(pack, tuned)
    found = pack_or_shipped(None, tuned.with_any_weights(), where=SHIPPED, hint="")
    assert found.pack_id == pack.pack_id
    require_fit(pack, tuned.with_any_weights())


def test_a_hint_of_the_callers_own_is_given() -> None:
    other = replace(pack().model, layers=9)
    with pytest.raises(PackError, match="the pack tiny does not fit the copy: ") as refused:
        require_fit(pack(), other, "the copy", hint="take another copy")
    assert refused.value.hint == "take another copy"
