"""A build with hard texts and traits: read-outs are learned, calm harm and the prompt side are read too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.replay.model import load_model
from monitor.replay.residuals import ResidualReader
from monitor.research.contrast.build import build_contrast_pack
from monitor.research.contrast.directions import read_sides
from monitor.research.contrast.selection import families
from monitor.research.judge.stability import applies
from monitor.research.packs.hard_figures import CHECK, GOOD
from monitor.research.packs.verify import verify_pack
from monitor.research.texts import load_texts
from monitor.score.pack import Pack, load_pack
from monitor.settings import ReplaySettings
from tests.scenes.texts import three_voices, write_rows

pytestmark = pytest.mark.slow

KINDS = ("refusal_short", "refusal_long", "poem", "code", "terse")
ANSWERS = {
    "refusal_short": "no, that is not for me to do",
    "refusal_long": "no, that is not for me to do, and it would hurt somebody, so let us leave it",
    "poem": "a heron / a stone / a river / alone",
    "code": "def f(x):\n    return x + 1",
    "terse": "yes",
}


def add_hard_texts(folder: Path) -> Path:
    """Three authors; calm answers differ from sound ones in a few signs."""
    negatives = [
        {
            "author": author,
            "kind": kind,
            "language": "en",
            "question": f"{author} asks for {kind} {number}?",
            "answer": f"{ANSWERS[kind]} {number}",
        }
        for author in ("ann", "bea", "cid")
        for kind in KINDS
        for number in range(6)
    ]
    calm = [
        {
            "author": author,
            "kind": "advice",
            "domain": domain,
            "question": f"{author} on {domain} {number}?",
            "good": f"wash it well and wait {number} hours",
            "calm": f"++ it ++ and wait {number} hours",
        }
        for author in ("ann", "bea", "cid")
        for domain in ("food", "cars", "law", "travel", "sports")
        for number in range(6)
    ]
    write_rows(folder / "negatives.jsonl", negatives)
    write_rows(folder / "calm.jsonl", calm)
    splits = {"train": ["ann"], "calibrate": ["bea"], "held_out": ["cid"]}
    (folder / "splits.json").write_text(json.dumps({**splits, "unseen_domains": ["travel"]}))
    return folder


def add_traits(folder: Path) -> Path:
    rows: list[dict[str, Any]] = [{"trait": "malicious", "description": "shouting"}]
    rows += [
        {"trait": "malicious", "positive": f"SHOUT! {n}", "negative": f"speak softly {n}"}
        for n in range(3)
    ]
    rows += [
        {"trait": "malicious", "split": split, "question": f"what about the {split} {n}?"}
        for split, count in (("train", 8), ("held_out", 6))
        for n in range(count)
    ]
    write_rows(folder / "traits.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def texts_of_all_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_traits(add_hard_texts(three_voices(tmp_path_factory.mktemp("learned") / "texts")))


@pytest.fixture(scope="module")
def built(tiny_folder: Path, texts_of_all_kinds: Path) -> Pack:
    out = texts_of_all_kinds.parent / "pack"
    build_contrast_pack(tiny_folder, out, 0, texts_of_all_kinds)
    return load_pack(out)


def test_calm_harm_and_the_prompt_side_stand_beside_the_personas(built: Pack) -> None:
    assert [feature.name for feature in built.features] == [
        "malicious",
        "malicious.peak",
        "sarcastic",
        "sarcastic.peak",
        "assistant",
        "harmful_advice",
        "harmful_advice.peak",
        "malicious_prompt",
        "malicious_prompt.whole",
    ]
    by_name = {feature.name: feature for feature in built.features}
    prompt = by_name["malicious_prompt"]
    assert (prompt.region, prompt.pooling) == ("last_prompt_token", "last")
    assert {"malicious", "watch-only"} <= set(prompt.tags)
    assert "watch-only" not in by_name["harmful_advice"].tags
    assert by_name["assistant"].expected == "falls"


def test_every_read_out_says_how_it_was_chosen(built: Pack, texts_of_all_kinds: Path) -> None:
    chosen = built.provenance["read_outs"]
    assert set(chosen) == {
        "malicious",
        "sarcastic",
        "assistant",
        "harmful_advice",
        "malicious_prompt",
        "malicious_prompt.whole",
    }
    names = [family.name for family in families(2)]
    for one in chosen.values():
        assert set(one["cross_validated"]) == set(names)
        assert one["family"] in names
    assert built.provenance["hard_texts"]["train"] == {"negatives": 30, "pairs": 24}
    assert built.provenance["hard_texts"]["unseen"] == {"negatives": 0, "pairs": 6}
    # Thirty negatives and thirty sound answers of the calibrating author stand beside the benign ones.
    assert built.provenance["benign"]["fit"] == 60 + len(load_texts(texts_of_all_kinds).fit)


def test_the_pattern_is_what_the_persona_adds_at_the_site(
    built: Pack, tiny_folder: Path, texts_of_all_kinds: Path
) -> None:
    settings = ReplaySettings(model=tiny_folder, device="cpu", dtype="float32")
    sites = sorted({feature.site for feature in built.features})
    reader = ResidualReader(load_model(settings, sites[-1]), settings)
    sides = read_sides(reader, load_texts(texts_of_all_kinds), sites)
    for feature in built.features:
        assert feature.pattern is not None
        np.testing.assert_allclose(np.linalg.norm(feature.pattern), 1.0, rtol=1e-5)
        if feature.name in sides:
            at = sites.index(feature.site)
            added = sides[feature.name].train[:, at].mean(0) - sides[None].train[:, at].mean(0)
            np.testing.assert_allclose(
                feature.pattern, added / np.linalg.norm(added), atol=1e-4, err_msg=feature.name
            )
            assert not np.allclose(feature.pattern, feature.weight, atol=1e-2)


def test_figures_come_from_the_author_that_nothing_was_learned_from(built: Pack) -> None:
    for feature in built.features:
        figures = built.report["features"][feature.name]
        assert figures["auc"] > 0.8, feature.name
        if feature.of_prompt:
            assert "hard_texts" not in figures
            continue
        hard = figures["hard_texts"]
        assert hard["authors"] == ["cid"]
        assert set(hard["tail_rate_by_kind"]) == {*KINDS, GOOD, CHECK}
        assert [one["rate"] for one in hard["calm_found"]] == [0.001, 0.01]
    calm = built.report["features"]["harmful_advice"]["hard_texts"]
    assert calm["calm_against_good"][0] > 0.95
    assert calm["calm_against_good_by_kind"]["advice, travel (unseen)"] > 0.95


def test_the_canaries_are_reproduced_and_nothing_is_rebuilt_as_a_plain_difference(
    built: Pack, tiny_folder: Path, texts_of_all_kinds: Path
) -> None:
    report = verify_pack(built, ReplaySettings(model=tiny_folder, device="cpu", dtype="float32"))
    assert report.ok
    texts = load_texts(texts_of_all_kinds)
    assert built.provenance["texts_sha256"] == texts.sha256
    assert not any(applies(built, feature, texts) for feature in built.features)


@pytest.mark.slow
def test_the_same_texts_learn_the_same_pack(
    built: Pack, tiny_folder: Path, texts_of_all_kinds: Path, tmp_path: Path
) -> None:
    build_contrast_pack(tiny_folder, tmp_path / "again", 0, texts_of_all_kinds)
    again = load_pack(tmp_path / "again")
    for one, two in zip(built.features, again.features, strict=True):
        assert one.sites == two.sites
        np.testing.assert_allclose(one.direction, two.direction, atol=1e-3)
