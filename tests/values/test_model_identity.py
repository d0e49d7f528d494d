"""Which model it is, and what differs: one rule for packs, copies, candidates and baselines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.values.identity import BaselineFingerprint, Copy, ModelIdentity

MODEL = ModelIdentity(
    model_id="served",
    architecture="llama",
    hidden_size=32,
    layers=4,
    vocab_size=400,
    weights_hash="a" * 64,
    tokenizer_hash="b" * 64,
    template_hash="c" * 64,
)


@pytest.mark.parametrize(
    ("changes", "options", "fields"),
    [
        ({}, {}, []),
        ({"model_id": "elsewhere"}, {}, []),
        ({"layers": 5, "hidden_size": 64}, {}, ["hidden_size", "layers"]),
        ({"weights_hash": "0" * 64}, {}, ["weights_hash"]),
        ({"weights_hash": "0" * 64}, {"weights": False}, []),
        ({"weights_hash": None, "template_hash": None}, {}, []),
        ({"template_hash": None}, {"unknown_differs": True}, ["template_hash"]),
    ],
)
def test_what_differs(changes: dict[str, Any], options: dict[str, bool], fields: list[str]) -> None:
    other = replace(MODEL, **changes)
    assert [found.field for found in MODEL.differences(other, **options)] == fields
    assert [found.field for found in other.differences(MODEL, **options)] == fields


def test_a_difference_is_told_with_its_hashes_cut() -> None:
    (found,) = MODEL.differences(replace(MODEL, tokenizer_hash="d" * 64))
    assert found.short == ("bbbbbbbbbbbb…", "dddddddddddd…")
    (found,) = MODEL.differences(replace(MODEL, vocab_size=401))
    assert found.short == ("400", "401")


def test_a_baseline_knows_the_models_that_it_was_made_with() -> None:
    made = BaselineFingerprint(
        copies=(Copy.of("b" * 64, "float32"), Copy.of("a" * 64, "bfloat16")), facts={}
    )
    assert made.models == ("a" * 12, "b" * 12)
    assert made.strange("a" * 64) is None
    assert made.strange("c" * 64) == "c" * 12
    assert BaselineFingerprint(facts={}).strange("c" * 64) is None, "it does not know"


def test_a_baseline_knows_the_dtypes_that_it_was_made_in() -> None:
    made = BaselineFingerprint(copies=(Copy.of("b" * 64, "float32"),), facts={})
    assert made.dtypes == ("float32",)
    assert made.in_another_dtype("bfloat16")
    assert not made.in_another_dtype("float32")
    both = replace(made, copies=(*made.copies, Copy.of("b" * 64, "bfloat16")))
    assert not both.in_another_dtype("bfloat16"), "it holds readings of both"
    assert not BaselineFingerprint(facts={}).in_another_dtype("bfloat16"), "it does not know"


def test_a_row_of_an_earlier_release_is_read_and_kept_as_it_is() -> None:
    row = {
        "bucket_seconds": "60",
        "sampling_rate": "1",
        "lineages": "0123456789ab/float32 fedcba987654/bfloat16",
        "served_models": "@ served@1",
        "pack_id": "p",
        "n": "1200",
    }
    read = BaselineFingerprint.read(row)
    assert read.copies == (Copy("0123456789ab", "float32"), Copy("fedcba987654", "bfloat16"))
    assert read.served_models == ("@", "served@1")
    assert dict(read.facts) == {
        key: row[key] for key in ("bucket_seconds", "sampling_rate", "pack_id", "n")
    }
    assert read.stored() == row
    assert BaselineFingerprint.read({}).stored() == {"lineages": "", "served_models": ""}


words = st.text(st.characters(categories=["L", "N"], include_characters="._-@"), min_size=1)


@given(
    copies=st.lists(st.tuples(st.text("0123456789abcdef", min_size=12), words)),
    served=st.lists(words),
    facts=st.dictionaries(
        words.filter(lambda key: key not in ("lineages", "served_models")), words
    ),
)
def test_a_fingerprint_survives_its_row(
    copies: list[tuple[str, str]], served: list[str], facts: dict[str, str]
) -> None:
    made = BaselineFingerprint(
        copies=tuple(Copy.of(*copy) for copy in copies), served_models=tuple(served), facts=facts
    )
    assert BaselineFingerprint.read(made.stored()) == made
