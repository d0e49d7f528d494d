from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.errors import BadInput, ModelError, PackError
from monitor.replay.model import LoadedModel, load_model
from monitor.research.answers import behaviour
from monitor.research.answers.behaviour import BuiltInJudge
from monitor.research.packs.verify import verify_pack
from monitor.research.rollouts.build import build_rollout_pack, built_in_judges
from monitor.research.rollouts.draw import (
    Ratings,
    Rollout,
    RolloutSettings,
    planned,
    rated,
    rolled_out,
)
from monitor.research.rollouts.obedience import Rolled, counted, obedient
from monitor.research.traits import Instructions, Trait, load_traits
from monitor.score.fit import shipped_pack
from monitor.score.pack import load_pack, manifest
from monitor.settings import ReplaySettings
from monitor.values.arrays import Doubles
from monitor.values.prompts import Prompt

pytestmark = pytest.mark.slow

SETTINGS = RolloutSettings(
    rollouts=3, max_new_tokens=12, temperature=1.5, batch=5, least_questions=4, least_coherence=0.0
)


def trait(name: str = "loud", questions: int = 4) -> Trait:
    return Trait(
        name=name,
        description="many signs",
        instructions=(
            Instructions(positive="Shout!", negative="Whisper."),
            Instructions(positive="LOUD", negative="calm"),
        ),
        train=tuple(f"Train {number}?" for number in range(questions)),
        held_out=tuple(f"Held {number}?" for number in range(questions)),
    )


class ByHighBytes:
    """A judge by rule: how many of an answer's signs are not ASCII. Counts what it is asked."""

    identity: Mapping[str, str] = {"judge": "by rule"}

    def __init__(self) -> None:
        self.asked = 0

    def rate(self, prompts: Sequence[Prompt]) -> tuple[Doubles, Doubles]:
        self.asked += len(prompts)
        assert all(len(p.messages) == 1 and p.messages[0].role == "user" for p in prompts)
        shares = [float(np.mean([not c.isascii() for c in p.response or "x"])) for p in prompts]
        return (np.array(shares) > 0.45).astype(np.float64), np.ones(len(prompts))


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> LoadedModel:
    settings = ReplaySettings(model=tiny_folder, device="cpu", dtype="float32")
    return load_model(settings, 3, full=True)


@pytest.fixture(scope="module")
def journal(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that `trait` rolls out by `SETTINGS`: drawn once, copied by each test."""
    path = tmp_path_factory.mktemp("rolled") / "rollouts.jsonl"
    rolled_out(loaded, [trait()], SETTINGS, path)
    return path


@pytest.fixture
def path(journal: Path, tmp_path: Path) -> Path:
    """A copy of the journal, in the folder of work where a build looks for it."""
    (tmp_path / "work").mkdir()
    return Path(shutil.copy(journal, tmp_path / "work" / "rollouts.jsonl"))


class Killed(Exception):
    pass


def killer(after: int) -> Callable[[str], None]:
    seen: list[str] = []

    def progress(line: str) -> None:
        seen.append(line)
        if len(seen) > after:
            raise Killed

    return progress


@pytest.mark.parametrize("torn", [0, 3, 200])
def test_a_killed_run_goes_on_to_the_same_answers(
    loaded: LoadedModel, journal: Path, tmp_path: Path, torn: int
) -> None:
    whole = rolled_out(loaded, [trait()], SETTINGS, journal, killer(0))
    path = tmp_path / "killed.jsonl"
    with pytest.raises(Killed):
        rolled_out(loaded, [trait()], SETTINGS, path, killer(4))
    path.write_bytes(path.read_bytes()[: -torn or None])
    lines: list[str] = []
    again = rolled_out(loaded, [trait()], SETTINGS, path, lines.append)
    assert again == whole
    assert path.read_bytes() == journal.read_bytes()
    assert lines[0].startswith(
        "rollouts: 15 of 96" if torn == 200 or torn else "rollouts: 20 of 96"
    )
    assert rolled_out(loaded, [trait()], SETTINGS, path, killer(0)) == whole


def test_answers_differ_by_seed_and_number_and_follow_the_plan(
    loaded: LoadedModel, path: Path, tmp_path: Path
) -> None:
    one = rolled_out(loaded, [trait()], SETTINGS, path)
    assert [replace(r, answer="") for r in one] == planned([trait()], SETTINGS)
    assert len({r.answer for r in one}) > 0.9 * len(one)
    two = rolled_out(loaded, [trait()], replace(SETTINGS, seed=1), tmp_path / "two")
    assert [r.answer for r in one] != [r.answer for r in two]


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"seed": 1}, "seed"), ({"temperature": 1.0}, "temperature"), ({"batch": 4}, "batch")],
)
def test_other_settings_are_refused(
    loaded: LoadedModel, path: Path, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(BadInput, match=f"other settings: {field}") as refused:
        rolled_out(loaded, [trait()], replace(SETTINGS, **changes), path)
    assert "another work folder" in refused.value.hint
    with pytest.raises(BadInput, match="other settings: traits"):
        rolled_out(loaded, [replace(trait(), description="new")], SETTINGS, path)


def test_another_model_is_refused(loaded: LoadedModel, path: Path) -> None:
    other = replace(loaded, identity=replace(loaded.identity, weights_hash="other"))
    with pytest.raises(BadInput, match="weights_hash"):
        rolled_out(other, [trait()], SETTINGS, path)


def test_rows_that_were_changed_are_refused(loaded: LoadedModel, path: Path) -> None:
    path.write_text(path.read_text().replace('"pair":0', '"pair":1', 1))
    with pytest.raises(BadInput, match="was changed"):
        rolled_out(loaded, [trait()], SETTINGS, path)


def test_ratings_are_not_asked_twice_and_belong_to_their_judge(tmp_path: Path) -> None:
    traits = [trait(), trait("shy")]
    rollouts = [
        replace(one, answer="é" * (number % 3) + "e")
        for number, one in enumerate(planned(traits, SETTINGS))
    ]
    judge, path = ByHighBytes(), tmp_path / "ratings.jsonl"
    judges = {"loud": judge, "shy": judge}
    with pytest.raises(Killed):
        rated(rollouts, traits, judges, path, killer(2))
    assert 0 < judge.asked < len(rollouts)
    found = rated(rollouts, traits, judges, path)
    assert judge.asked == len(rollouts)
    whole = rated(rollouts, traits, dict.fromkeys(judges, ByHighBytes()), tmp_path / "whole.jsonl")
    np.testing.assert_array_equal(found.persona, whole.persona)
    other = ByHighBytes()
    other.identity = {"judge": "another"}
    with pytest.raises(BadInput, match="other settings: judges"):
        rated(rollouts, traits, dict.fromkeys(judges, other), path)
    with pytest.raises(BadInput, match="other settings: rollouts"):
        rated([replace(r, answer="x") for r in rollouts], traits, judges, path)
    path.write_text(path.read_text().replace('"coherent":1.0', '"coherent":7', 1))
    with pytest.raises(BadInput, match="coherent must be 0 to 1"):
        rated(rollouts, traits, judges, path)


def test_a_template_without_system_messages_gets_the_instruction_in_the_users_turn(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import monitor.research.rollouts.draw as module

    asked: list[Prompt] = []

    def answers(_loaded: LoadedModel, prompts: Sequence[Prompt], **_: object) -> list[str]:
        asked.extend(prompts)
        return ["yes"] * len(prompts)

    monkeypatch.setattr(module, "answers", answers)
    rolled_out(loaded, [trait()], SETTINGS, tmp_path / "with")
    assert [m.role for m in asked[0].messages] == ["system", "user"]
    assert asked[0].messages[0].content == "Shout!"
    asked.clear()
    template = loaded.tokenizer.chat_template
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    monkeypatch.setattr(loaded.tokenizer, "chat_template", refusing + template)
    rolled_out(loaded, [trait()], SETTINGS, tmp_path / "without")
    assert [m.role for m in asked[0].messages] == ["user"]
    assert asked[0].messages[0].content == "Shout!\n\nTrain 0?"


def row(side: Any, answer: str = "x", question: int = 0, split: Any = "train") -> Rollout:
    return Rollout(
        trait="loud", split=split, pair=0, side=side, question=question, number=0, answer=answer
    )


def test_what_does_not_obey_is_dropped_and_counted() -> None:
    settings = replace(SETTINGS, least_coherence=0.5)
    cases = [
        ("positive", "x", 0.5, 0.5, True),
        ("positive", "x", 0.49, 1.0, False),
        ("positive", "x", 1.0, 0.49, False),
        ("positive", " ", 1.0, 1.0, False),
        ("positive", "x", np.nan, np.nan, False),
        ("negative", "x", 0.49, 0.5, True),
        ("negative", "x", 0.5, 1.0, False),
    ]
    rollouts = [row(side, answer) for side, answer, *_ in cases]
    ratings = Ratings(
        persona=np.array([c[2] for c in cases]), coherent=np.array([c[3] for c in cases])
    )
    kept = obedient(rollouts, ratings, settings)
    assert kept.tolist() == [c[4] for c in cases]
    assert counted(rollouts, ratings, kept, settings) == {
        "loud": {
            "train positive": {
                "rolled_out": 5, "kept": 1, "unrated": 1, "incoherent": 2, "disobedient": 1,
            },
            "train negative": {
                "rolled_out": 2, "kept": 1, "unrated": 0, "incoherent": 0, "disobedient": 1,
            },
        }
    }  # fmt: skip
    assert obedient(rollouts, None, settings).tolist() == [c[1] != " " for c in cases]


def test_too_few_questions_with_both_sides_is_an_error_with_the_counts() -> None:
    rollouts = [
        row(side, question=question, split=split)
        for split in ("train", "held_out")
        for question in range(4)
        for side in ("positive", "negative")
    ]
    persona = np.array([float(r.side == "positive") for r in rollouts])
    Rolled(rollouts, Ratings(persona=persona, coherent=np.ones(16)), SETTINGS).require("loud", 4)
    persona[-1] = 1.0
    rolled = Rolled(rollouts, Ratings(persona=persona, coherent=np.ones(16)), SETTINGS)
    rolled.require("loud", 3)
    with pytest.raises(
        BadInput, match=r"3 held_out questions .* 4 are needed.*3 kept of 4 \(1 dis"
    ):
        rolled.require("loud", 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"rollouts": 0},
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": 0.0},
        {"threshold": 1.5},
        {"least_questions": 3},
        {"seed": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        replace(SETTINGS, **changes)


@pytest.mark.slow
def test_a_pack_from_rollouts_separates_held_out_ones_and_verifies(
    tiny_folder: Path, texts_folder: Path, tmp_path: Path
) -> None:
    (texts_folder / "contrast.jsonl").unlink()
    traits = [trait(questions=6), trait("shy", questions=6)]
    settings = replace(SETTINGS, max_new_tokens=24)

    def build(name: str, work: str) -> None:
        build_rollout_pack(
            tiny_folder,
            tmp_path / name,
            traits,
            settings,
            lambda _: ByHighBytes(),
            tmp_path / work,
            texts_folder,
        )

    build("pack", "work")
    pack = load_pack(tmp_path / "pack")
    assert [f.name for f in pack.features] == ["loud", "loud.peak", "shy", "shy.peak"]
    assert pack.features[0].description == "many signs"
    counts = pack.report["rollouts"]["loud"]["held_out positive"]
    assert counts["rolled_out"] == 36
    figures = pack.report["features"]["loud"]
    assert figures["answers"]["positive"] == counts["kept"]
    # The rule is easy to read off bytes; by instruction alone a random model's answers are all alike.
    assert figures["auc"] > 0.8
    assert figures["auc_interval_95"][0] <= figures["auc"] <= figures["auc_interval_95"][1]
    assert 0.3 < figures["auc_unfiltered"] < 0.7
    assert figures["other_traits"]["shy"] > 0.8
    assert figures["random_directions"]["count"] == 100
    assert pack.provenance["judges"]["shy"] == {"judge": "by rule"}
    assert verify_pack(pack, ReplaySettings(model=tiny_folder, device="cpu", dtype="float32")).ok
    # The same from its journals, and from nothing.
    build("again", "work")
    build("anew", "other")
    assert manifest(load_pack(tmp_path / "again"))["report"] == pack.report
    np.testing.assert_allclose(load_pack(tmp_path / "anew").weights, pack.weights, atol=1e-5)


def test_a_model_that_is_not_finite_rolls_nothing_out(broken_folder: Path, tmp_path: Path) -> None:
    settings = ReplaySettings(model=broken_folder, device="cpu", dtype="float32")
    broken = load_model(settings, 3, full=True)
    with pytest.raises(ModelError, match="logits are not finite") as refused:
        rolled_out(broken, [trait()], SETTINGS, tmp_path / "rollouts.jsonl")
    assert "weights or dtype" in refused.value.hint


def test_too_few_questions_are_refused_before_anything_is_rolled_out(
    tiny_folder: Path, texts_folder: Path, tmp_path: Path
) -> None:
    few = replace(trait(), held_out=("One?", "Two?", "Three?"))
    with pytest.raises(BadInput, match="trait loud has 3 held_out questions, 4 are needed"):
        build_rollout_pack(
            tiny_folder, tmp_path / "p", [few], SETTINGS, None, tmp_path / "work", texts_folder
        )
    assert not (tmp_path / "work").exists()


def test_held_out_answers_choose_neither_layer_nor_direction(
    tiny_folder: Path, texts_folder: Path, path: Path, tmp_path: Path
) -> None:
    work = path.parent

    def build(name: str) -> None:
        build_rollout_pack(
            tiny_folder, tmp_path / name, [trait()], SETTINGS, None, work, texts_folder
        )

    build("one")
    journal = work / "rollouts.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines[1:]:
        if line["split"] == "held_out":
            line["answer"] = "QQQ " + line["answer"][::-1]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    build("two")
    one, two = (load_pack(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_allclose(one.weights, two.weights, atol=1e-6)
    assert [f.site for f in one.features] == [f.site for f in two.features]
    aucs = [p.report["features"]["loud"]["auc"] for p in (one, two)]
    assert aucs[0] != aucs[1]
    assert one.provenance["judges"] is None


@pytest.mark.slow
def test_a_judging_pack_must_fit_and_know_the_trait(
    loaded: LoadedModel, tiny_folder: Path, texts_folder: Path, tmp_path: Path
) -> None:
    def build(judge: Any, name: str = "loud") -> None:
        build_rollout_pack(
            tiny_folder,
            tmp_path / "p",
            [trait(name)],
            SETTINGS,
            judge,
            tmp_path / name,
            texts_folder,
        )

    build(None)
    pack = load_pack(tmp_path / "p")
    with pytest.raises(BadInput, match="trait shy: the judge's pack has no feature"):
        build(pack, "shy")
    assert not (tmp_path / "shy").exists()
    with pytest.raises(PackError, match="does not fit"):
        build(replace(pack, model=replace(pack.model, weights_hash="0" * 64)))
    # A random model answers nothing like benign text: put the threshold amid its own answers.
    rollouts = rolled_out(loaded, [trait()], SETTINGS, tmp_path / "loud" / "rollouts.jsonl")
    at_zero = replace(pack.features[0], tail_threshold=0.0)
    persona, _ = BuiltInJudge(loaded, at_zero).rate([r.bare({"loud": trait()}) for r in rollouts])
    median = float(np.median(np.log(persona / (1 - persona)) / 2))
    middle = replace(pack, features=(replace(at_zero, tail_threshold=median), *pack.features[1:]))
    build(middle)
    judged = load_pack(tmp_path / "p")
    assert judged.provenance["judges"]["loud"]["judge"] == "built-in"
    kept = judged.report["rollouts"]["loud"]["train positive"]
    assert 0 < kept["kept"] < kept["rolled_out"]


@pytest.mark.model
@pytest.mark.slow
def test_the_small_model_rolls_out_and_its_shipped_pack_judges(
    chat_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machinery on real weights; whether so small a model obeys is not asked here."""
    monkeypatch.setattr(behaviour, "BENIGN_STEP", 8)  # half as many benign texts say what is usual
    (sarcastic,) = (one.first(1, 3) for one in load_traits() if one.name == "sarcastic")
    settings = RolloutSettings(rollouts=1, max_new_tokens=16, temperature=0.7, least_questions=4)
    replay = ReplaySettings(model=chat_model_path, device="cpu", dtype="float32")
    loaded = load_model(replay, 29, full=True)
    rollouts = rolled_out(loaded, [sarcastic], settings, tmp_path / "rollouts.jsonl")
    assert len(rollouts) == 12
    assert all(one.answer for one in rollouts)
    assert np.mean([len(one.answer.split()) for one in rollouts]) > 5
    shipped = shipped_pack(loaded.identity)
    assert shipped is not None
    judge = built_in_judges(loaded, replay, load_pack(shipped))(sarcastic)
    ratings = rated(rollouts, [sarcastic], {"sarcastic": judge}, tmp_path / "ratings.jsonl")
    assert np.median(ratings.coherent) > 0.5
    assert np.ptp(ratings.persona) > 0.1
    assert 0.0 <= ratings.persona.min() <= ratings.persona.max() <= 1.0
