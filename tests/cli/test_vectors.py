"""``monitor pack import vectors``: published vectors of every kind become a pack that is read and scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monitor.research.judge.run import with_report
from monitor.score.pack import Pack, load_pack
from tests.cli.conftest import Cli, Ended
from tests.scenes.models import WIDTH
from tests.scenes.texts import part_of_texts
from tests.scenes.vectors import (
    BLOCKS,
    stack,
    write_control,
    write_npy,
    write_safetensors,
    write_torch,
)

Import = Callable[..., Ended]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return part_of_texts(tmp_path_factory.mktemp("texts") / "part", fit=4, check=8)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "pack"


@pytest.fixture
def importing(cli: Cli, model_folder: Path, texts: Path, out: Path) -> Import:
    """``importing(file, "--layer", 2)``: the command with all else that it needs."""

    def call(*arguments: object) -> Ended:
        return cli(
            *("pack", "import", "vectors", "--model", model_folder, "--out", out, "--data", texts),
            *("--licence", "MIT", "--source", "https://example.org/v, 1a2b", *arguments),
        )

    return call


def made(ended: Ended, out: Path) -> Pack:
    assert ended.code == 0, ended.err
    return load_pack(out)


def unit(row: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (row / np.linalg.norm(row.astype(np.float64))).astype(np.float32)


def test_a_plain_vector_becomes_a_pack_that_score_reads(
    importing: Import, cli: Cli, configured: Callable[..., Path], model_folder: Path,
    tmp_path: Path, out: Path,
) -> None:  # fmt: skip
    row = stack(1)[0]
    file = write_npy(tmp_path / "evil.npy", row)
    ended = importing(file, "--layer", 2, "--layers-are", "blocks", "--json")
    pack = made(ended, out)
    (told,) = json.loads(ended.out)
    assert told["id"] == pack.pack_id
    assert told["layer"] == "2 (blocks)"
    (feature,) = pack.features
    assert (feature.name, feature.site, feature.kind, feature.region, feature.expected) == (
        "evil", 2, "direction", "response", "rises",
    )  # fmt: skip
    np.testing.assert_array_equal(feature.weight, unit(row))
    assert {"misaligned", "watch-only", "unjudged"} < set(feature.tags)
    assert len(feature.calibration.tokens) > 1
    assert feature.tail_threshold != 3.0
    assert len(pack.canaries) == 12
    assert pack.provenance["licence"] == "MIT"
    assert pack.provenance["source"] == "https://example.org/v, 1a2b"
    origin = pack.provenance["vectors"]["evil"]
    assert (origin["file"], origin["layer"], origin["layers_are"]) == ("evil.npy", 2, "blocks")
    assert pack.report["vectors"]["evil"]["benign"]["n"] > 0

    exchange = {"messages": [{"role": "user", "content": "Hi"}], "response": "Good day to you."}
    (tmp_path / "log.jsonl").write_text(json.dumps(exchange) + "\n")
    scored = cli(
        *("score", tmp_path / "log.jsonl"),
        config=configured(
            replay={"model": str(model_folder), "device": "cpu"}, pack={"path": str(out)}
        ),
    )
    assert scored.code == 0, scored.err
    assert '"evil"' in scored.out
    verified = cli("pack", "verify", out, "--model", model_folder)
    assert verified.code == 0, verified.err


def test_several_tensors_and_layers_each_have_a_name(
    importing: Import, tmp_path: Path, out: Path
) -> None:
    evil, warm = stack(BLOCKS + 1), stack(BLOCKS + 1, seed=1)
    file = write_safetensors(tmp_path / "all.safetensors", evil=evil, warm=warm)
    options = ["--layers-are", "hidden-states", "--layer", 1, "--layer", 3]
    pack = made(
        importing(
            *(file, "--tensor", "evil", "--tensor", "warm", *options, "--falls", "warm"),
            *("--region", "all", "--pooling", "max", "--tag", "rude"),
        ),
        out,
    )
    assert [(f.name, f.site, f.expected, f.region, f.pooling) for f in pack.features] == [
        ("evil.0", 0, "rises", "all", "max"),
        ("evil.2", 2, "rises", "all", "max"),
        ("warm.0", 0, "falls", "all", "max"),
        ("warm.2", 2, "falls", "all", "max"),
    ]
    np.testing.assert_array_equal(pack.features[1].weight, unit(evil[3]))
    assert "rude" in pack.features[0].tags
    assert "assistant" in pack.features[2].tags


@pytest.mark.parametrize(
    ("format", "site"), [("repeng", 2), ("llama.cpp", 1)], ids=["repeng", "llama.cpp"]
)
def test_a_control_vector_is_read_by_the_program_that_made_it(
    importing: Import, tmp_path: Path, out: Path, format: str, site: int
) -> None:
    rows = stack(BLOCKS - 1)
    file = write_control(tmp_path / "happy.gguf", rows)
    pack = made(importing(file, "--format", format, "--layer", 2), out)
    (feature,) = pack.features
    assert (feature.name, feature.site) == ("happy", site)
    np.testing.assert_array_equal(feature.weight, unit(rows[1]))


@pytest.mark.parametrize(
    ("kind", "region"),
    [
        ("response_avg", "response"),
        ("prompt_avg", "prompt"),
        ("prompt_last", "last_prompt_token"),
    ],
)
def test_persona_vectors_count_the_embeddings_and_read_what_was_averaged(
    importing: Import, tmp_path: Path, out: Path, kind: str, region: str
) -> None:
    rows = stack(BLOCKS + 1)
    file = write_torch(tmp_path / f"evil_{kind}_diff.pt", torch.from_numpy(rows).bfloat16())
    pack = made(importing(file, "--layer", 2), out)
    (feature,) = pack.features
    assert (feature.name, feature.site, feature.region) == ("evil", 1, region)
    np.testing.assert_allclose(feature.weight, unit(rows[2]), atol=0.01)


@pytest.mark.parametrize("alone", [True, False], ids=["released", "as the pipeline saves it"])
def test_an_assistant_axis_counts_blocks_and_falls(
    importing: Import, tmp_path: Path, out: Path, alone: bool
) -> None:
    rows = torch.from_numpy(stack(BLOCKS))
    held = {"axis": rows, "default_mean": rows, "role_mean": rows, "n_roles": 275}
    file = write_torch(
        tmp_path / ("assistant_axis.pt" if alone else "any.pt"), rows if alone else held
    )
    pack = made(importing(file, "--layer", 2, "--name", "axis"), out)
    (feature,) = pack.features
    assert (feature.name, feature.site, feature.expected) == ("axis", 2, "falls")
    assert "assistant" in feature.tags
    np.testing.assert_array_equal(feature.weight, unit(rows[2].numpy()))

    turned = importing(file, "--layer", 2, "--name", "axis", "--rises", "axis", "--yes")
    assert made(turned, out).features[0].expected == "rises"


def test_a_judged_vector_is_watched_by_its_verdict_alone(
    importing: Import, tmp_path: Path, out: Path
) -> None:
    files = [write_npy(tmp_path / f"{name}.npy", stack(1, seed=i)) for i, name in enumerate("ab")]
    pack = made(importing(*files, "--layer", 1, "--layers-are", "blocks"), out)
    assert all("watch-only" in one.tags for one in pack.selectable)
    features = {"a": {"decision": "ship"}, "b": {"decision": "watch-only"}}
    judged = with_report(pack, {"features": features})
    assert [("watch-only" in one.tags) for one in judged.selectable] == [False, True]


def test_a_vector_that_reads_little_of_benign_text_is_doubted(
    importing: Import, model_folder: Path, tmp_path: Path, out: Path
) -> None:
    first = made(
        importing(write_npy(tmp_path / "x.npy", stack(1)), "--layer", 1, "--layers-are", "blocks"),
        out,
    )
    assert first.report["vectors"]["x"]["spread"] > 0
    from monitor.replay.model import load_model
    from monitor.replay.residuals import ResidualReader
    from monitor.research.reading import packing_settings
    from monitor.research.texts import load_texts

    settings = packing_settings(model_folder, "cpu")
    reader = ResidualReader(load_model(settings, 1), settings)
    means = reader.mean_residuals(load_texts(answers=False).check, [1], "response")[:, 0]
    _, _, axes = np.linalg.svd(means - means.mean(axis=0))
    for row, doubted in ((axes[0], False), (axes[-1], True)):
        file = write_npy(tmp_path / "axis.npy", row.astype(np.float32))
        ended = importing(
            file, "--layer", 1, "--layers-are", "blocks", "--format", "plain", "--yes"
        )
        assert made(ended, out)
        assert ("doubtful" in ended.err) is doubted


BLOCK = ("--layer", 2, "--layers-are", "blocks")
HIDDEN = ("--layer", 2, "--layers-are", "hidden-states")


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (stack(1)[0], ("--layer", 2), "--layers-are"),
        (stack(1)[0], ("--layer", 4, "--layers-are", "blocks"), "--layer 4"),
        (stack(1)[0], ("--layer", -1, "--layers-are", "blocks"), "--layer -1"),
        (stack(1)[0], ("--layer", 0, "--layers-are", "hidden-states"), "embeddings"),
        (stack(1)[0], ("--layer", 4, "--layers-are", "hidden-states"), "final norm"),
        (stack(1)[0], ("--layer", 5, "--layers-are", "hidden-states"), "--layer 5"),
        (stack(1)[0], (*BLOCK, "--layer", 2), "--layer: each may be given once"),
        (stack(1, WIDTH * 2)[0], BLOCK, "another model"),
        (stack(BLOCKS), HIDDEN, "counted as blocks"),
        (stack(BLOCKS + 1), BLOCK, "counted as hidden-states"),
        (stack(BLOCKS + 3), BLOCK, "which row is which layer"),
        (stack(BLOCKS)[None], BLOCK, "has shape"),
        (np.zeros(WIDTH, np.float32), BLOCK, "is zero"),
        (np.full(WIDTH, np.nan, np.float32), BLOCK, "not finite"),
        (1e9 * stack(1)[0], BLOCK, "scaled for steering"),
        (1e-20 * stack(1)[0], BLOCK, "a residual of"),
        (np.ones(WIDTH, np.int64), BLOCK, "floating point"),
        (stack(1)[0], (*BLOCK, "--format", "assistant-axis", "--layers-are", "hidden-states"), "--layers-are"),
        (stack(1)[0], (*BLOCK, "--format", "repeng"), "--format repeng"),
        (stack(1)[0], (*BLOCK, "--tensor", "evil"), "--tensor evil"),
        (stack(1)[0], (*BLOCK, "--name", "a", "--name", "b"), "--name: 2 names for 1 vectors"),
        (stack(1)[0], (*BLOCK, "--falls", "kind"), "--falls kind: the vectors are evil"),
        (stack(1)[0], (*BLOCK, "--falls", "evil", "--rises", "evil"), "--rises and --falls both"),
        (stack(1)[0], (*BLOCK, "--tag", ""), "--tag"),
        (stack(1)[0], (*BLOCK, "--source", " "), "--source"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_the_option_that_mends_it(
    importing: Import, tmp_path: Path, out: Path, values: Any, options: Any, message: str
) -> None:
    refused = importing(write_npy(tmp_path / "evil.npy", values), *options)
    assert refused.code == 2
    assert message in refused.err
    assert not out.exists()


def test_formats_that_need_a_word_are_refused_without_it(
    importing: Import, tmp_path: Path, out: Path
) -> None:
    control = write_control(tmp_path / "c.gguf", stack(BLOCKS))
    several = write_safetensors(tmp_path / "s.safetensors", a=stack(1)[0], b=stack(1)[0])
    persona = write_torch(tmp_path / "evil_response_avg_diff.pt", torch.ones(BLOCKS, WIDTH))
    a_model = write_control(tmp_path / "m.gguf", stack(1), architecture="llama")
    for given, message in (
        ((control, "--layer", 2), "--format repeng or --format llama.cpp"),
        ((control, "--layer", 3, "--format", "repeng"), "final norm"),
        ((control, "--layer", 1, "--format", "repeng", "--tensor", "direction.1"), "--layer"),
        ((control, "--layer", 2, "--format", "llama.cpp", "--layers-are", "blocks"), "counts hidden-states"),
        ((a_model, "--layer", 1, "--format", "repeng"), "a model goes to --model"),
        ((several, *BLOCK), "say it with --tensor"),
        ((persona, "--layer", 2), "counted as blocks"),
        ((several, several, *BLOCK, "--tensor", "a"), "named twice"),
        ((tmp_path / "no.npy", *BLOCK), "cannot read"),
        ((tmp_path, *BLOCK), "name the file itself"),
    ):  # fmt: skip
        refused = importing(*given)
        assert refused.code == 2, given
        assert message in refused.err
    assert not out.exists()


def test_its_help_names_formats_and_ways_of_counting(cli: Cli) -> None:
    said = cli("pack", "import", "vectors", "--help").out
    for word in ("repeng", "assistant-axis", "hidden-states", "--licence", "--falls", "--source"):
        assert word in said
