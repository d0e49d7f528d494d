"""Several packs become one in which nothing but their number changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.errors import BadInput
from monitor.score.join import joined
from monitor.score.pack import Canary, Pack, load_pack, manifest, save_pack
from monitor.values.features import Covariate
from monitor.values.identity import ModelIdentity
from monitor.values.prompts import Message
from monitor.values.verdicts import reports
from tests.score.packs import WIDTH, composite, contested, encoder, feature, pack


def canary(name: str, *readings: float, says: str = "Hello") -> Canary:
    return Canary(
        name=name,
        messages=(Message(role="user", content=says),),
        response="Hi.",
        readings=np.array(readings, dtype=np.float32),
    )


def of(name: str, *features: Any, canaries: tuple[Canary, ...] = (), **changes: Any) -> Pack:
    return replace(pack(), name=name, features=features, canaries=canaries, **changes)


def test_covariates_of_the_first_pack_that_has_any_are_kept() -> None:
    weight = np.ones(WIDTH, dtype=np.float32)
    read = (Covariate(name="prompt.1", site=1, region="prompt", weight=weight),)
    one, two = of("contrast", feature()), of("latents", feature("other"), covariates=read)
    assert joined([one, two], "both", "1").covariates == read
    assert joined([one, replace(two, covariates=())], "both", "1").covariates == ()


def test_features_and_readings_stand_side_by_side(tmp_path: Path) -> None:
    one = of(
        "contrast",
        feature(),
        feature("assistant", expected="falls"),
        canaries=(canary("a", 1.0, np.nan), canary("b", 2.0, 3.0)),
    )
    # The same texts in another order.
    two = of(
        "latents",
        feature("latent.7", largest_norm=9.0),
        canaries=(canary("b", 5.0), canary("a", 4.0)),
        report={"autoencoder": {"l0": 3.0}},
        provenance={"seed": 1},
    )
    made = joined([one, two], "both", "2")
    assert save_pack(made, tmp_path) == made.pack_id
    found = load_pack(tmp_path)
    assert (found.name, found.version, found.model) == ("both", "2", one.model)
    assert manifest(found)["schema_version"] == 2
    entries = [entry for source in (one, two) for entry in manifest(source)["features"]]
    assert manifest(found)["features"] == entries
    np.testing.assert_array_equal(found.weights, np.concatenate([one.weights, two.weights]))
    assert [c.name for c in found.canaries] == ["a", "b"]
    np.testing.assert_array_equal(found.canaries[0].readings, [1.0, np.nan, 4.0])
    np.testing.assert_array_equal(found.canaries[1].readings, [2.0, 3.0, 5.0])
    source = found.provenance["sources"]["latents"]
    assert (source["id"], source["features"]) == (two.pack_id, ["latent.7"])
    assert source["provenance"] == {"seed": 1}
    assert found.report["sources"] == {"contrast": {"auc": 0.9}, "latents": two.report}
    simple = replace(two, features=(feature("x"),))
    assert manifest(joined([one, simple], "both", "2"))["schema_version"] == 1


def test_packs_of_one_name_are_told_apart_and_joins_can_be_joined() -> None:
    one, two = of("latents", feature("a")), of("latents", feature("b"), report={"n": 2})
    both = joined([one, two], "both", "1")
    assert set(both.report["sources"]) == {f"latents-{p.pack_id[:12]}" for p in (one, two)}
    third = of("third", feature("c"), report={"n": 3})
    whole = joined([both, third], "whole", "1")
    assert [f.name for f in whole.features] == ["a", "b", "c"]
    assert [r for r in reports(whole.report) if "sources" not in r] == [
        one.report,
        two.report,
        third.report,
    ]


def test_equal_encoders_are_shared_and_others_of_the_name_get_another(tmp_path: Path) -> None:
    # Loaded from two folders, equal encoders are two objects.
    packs = [
        of("one", contested(1, encoder())),
        of("two", contested(2, encoder())),
        of("three", contested(3, encoder(seed=4))),
        of("four", feature()),
    ]
    made = joined(packs, "all", "1")
    save_pack(made, tmp_path)
    found = load_pack(tmp_path)
    assert [e.name for e in found.encoders] == ["sae.2", "sae.2.2"]
    first, second, third, plain = found.features
    assert first.encoder is second.encoder
    assert third.encoder is found.encoders[1]
    np.testing.assert_array_equal(third.weight, encoder(seed=4).weight[3])
    assert plain.encoder is None


@pytest.mark.parametrize(
    ("packs", "message"),
    [
        ([of("one", feature())], "at least two packs, found 1"),
        (
            [of("one", feature(), feature("b")), of("two", feature("b"), feature())],
            "one, two each have a feature called malicious, b",
        ),
        (
            [
                of("one", feature("a"), canaries=(canary("a", 1.0),)),
                of("two", feature("b"), canaries=(canary("a", 1.0, says="Good day"),)),
            ],
            "one and two have other canaries: a",
        ),
        # The canary that both have is none of those named.
        (
            [
                of("one", feature("a"), canaries=(canary("a", 1.0), canary("b", 1.0))),
                of("two", feature("b"), canaries=(canary("a", 1.0), canary("c", 1.0))),
            ],
            "one and two have other canaries: b, c$",
        ),
        (
            [of("one", feature("a")), of("two", feature("b"), canaries=(canary("a", 1.0),))],
            "other canaries: a",
        ),
    ],
)
def test_what_cannot_be_joined_is_named(packs: list[Pack], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        joined(packs, "both", "1")


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"weights_hash": "b" * 64}, "weights_hash"),
        ({"template_hash": "c" * 64, "vocab_size": 101}, "vocab_size, template_hash"),
        ({"model_id": "elsewhere"}, None),
    ],
)
def test_packs_must_be_of_one_model(changes: dict[str, Any], names: str | None) -> None:
    one = of("one", feature("a"))
    model: ModelIdentity = replace(one.model, **changes)
    two = of("two", feature("b"), model=model)
    if names is None:
        assert joined([one, two], "both", "1").model == one.model
        return
    with pytest.raises(BadInput, match=f"different models: their {names} differ"):
        joined([one, two], "both", "1")


def test_composites_are_joined_with_their_parts(tmp_path: Path) -> None:
    one = of("contrast", feature(), composite("harmful", 0, 3))
    two = of("more", composite("calm", 1), feature("assistant", expected="falls"))
    save_pack(joined([one, two], "both", "1"), tmp_path)
    found = load_pack(tmp_path)
    assert manifest(found)["schema_version"] == 3
    for theirs, ours in zip(found.features, (*one.features, *two.features), strict=True):
        assert theirs.sites == ours.sites
        np.testing.assert_array_equal(theirs.direction, ours.direction)
