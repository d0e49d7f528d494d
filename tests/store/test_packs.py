"""Features as rules see them: with what follows from the judge's verdicts in the pack."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine

from monitor.score.join import joined
from monitor.score.pack import Pack, manifest
from monitor.store.database import transaction
from monitor.store.packs import pack_features, register_pack
from tests.score.packs import feature, pack


def judged(made: Pack, **decisions: str) -> Pack:
    features: dict[str, Any] = {name: {"decision": one} for name, one in decisions.items()}
    return replace(made, report={"judge": {"decision": "ship", "features": features}})


ONE = judged(
    pack(canaries=(), features=(feature("a"), feature("b"), feature("c"))), a="ship", b="watch-only"
)
TWO = judged(pack(canaries=(), features=(feature("d", tags=("style",)),)), d="reject")


@pytest.mark.parametrize(
    ("held", "verdicts"),
    [
        (pack(canaries=(), features=(feature("a"),)), {"a": None}),
        (ONE, {"a": "ship", "b": "watch-only", "c": None}),
        (
            joined([ONE, TWO], "both", "1"),
            {"a": "ship", "b": "watch-only", "c": None, "d": "reject"},
        ),
        (
            judged(joined([ONE, TWO], "both", "1"), a="reject", b="ship"),
            {"a": "reject", "b": "ship", "c": None, "d": None},
        ),
    ],
)
def test_sql_reads_verdicts_as_the_pack_does(
    database: Engine, held: Pack, verdicts: dict[str, str | None]
) -> None:
    with transaction(database) as c:
        register_pack(c, held.pack_id, held.name, manifest(held), held.features)
        found = pack_features(c, held.pack_id)
    assert {one.name: one.verdict for one in found} == verdicts
    assert {n: v for n, v in verdicts.items() if v} == held.verdicts
    assert [one.tags for one in found] == [one.tags for one in held.selectable]


def test_a_joined_packs_own_verdict_goes_before_those_of_its_sources(database: Engine) -> None:
    both = joined([ONE, TWO], "both", "1")
    own = {"judge": {"features": {"a": {"decision": "reject"}}}}
    held = replace(both, report={**both.report, **own})
    with transaction(database) as c:
        register_pack(c, held.pack_id, held.name, manifest(held), held.features)
        found = {one.name: one.verdict for one in pack_features(c, held.pack_id)}
    assert found == {"a": "reject", "b": "watch-only", "c": None, "d": "reject"}
    assert held.verdicts == {"a": "reject", "b": "watch-only", "d": "reject"}
