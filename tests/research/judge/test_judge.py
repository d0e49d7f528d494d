"""A pack judged end to end on a tiny model in which one direction is a persona.

Upper-case letters share one direction of a tied embedding: it tells shouted answers from spoken ones
of the same words, and adding it makes shouting likelier.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.errors import BadInput, ModelError, PackError
from monitor.replay.branches import prefill
from monitor.replay.model import load_model
from monitor.research.answers import generate, likelihood
from monitor.research.judge import control
from monitor.research.judge.page import judge_page, verdict_rows
from monitor.research.judge.run import judge_pack, with_report
from monitor.research.packs.assemble import assembled
from monitor.research.reading import Reader
from monitor.research.texts import load_texts
from monitor.score.pack import Pack, load_pack, save_pack
from monitor.values.arrays import Floats
from monitor.values.features import Feature, Part
from tests.scenes.models import PLAIN, WIDTH, changed_model, save_tiny
from tests.scenes.packs import feature, on_cpu
from tests.scenes.texts import WORDS, add_negatives, add_styles, loud_voice

pytestmark = pytest.mark.slow

SITE = 1


@pytest.fixture(scope="session")
def loud_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dimension 0 of the embedding belongs to capitals."""

    def capitals(model: Any, tokenizer: Any) -> None:
        table = model.get_input_embeddings().weight
        table.normal_(0.0, 0.3)
        table[:, 0] = 0.0
        for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
            table[tokenizer.convert_tokens_to_ids(letter), 0] = 1.5

    return save_tiny(
        tmp_path_factory.mktemp("loud"),
        seed=5,
        # A tied model repeats the last token: a visible one, or its answers are white space.
        template=PLAIN.replace("assistant: ", "assistant:"),
        weights=capitals,
        num_hidden_layers=3,
        tie_word_embeddings=True,
    )


@pytest.fixture(scope="session")
def loud_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = loud_voice(
        tmp_path_factory.mktemp("loud_texts"),
        "loud",
        questions=34,
        train=10,
        benign=160,
        check=lambda number: bool(number // 12 % 2),
        words=lambda number: 2 ** (1 + number % 4),
        marks=True,
    )
    add_negatives(
        folder, lambda kind, number: f"the heron said {number} to a quiet {WORDS[number % 14]}"
    )
    return add_styles(
        folder, {"terse": lambda text: text[:12], "backwards": lambda text: text[::-1]}
    )


def axis() -> Floats:
    return np.eye(WIDTH, dtype=np.float32)[0]


def noise() -> Floats:
    direction = np.random.default_rng(8).normal(size=WIDTH).astype(np.float32)
    direction[0] = 0.0
    return direction / np.float32(np.linalg.norm(direction))


MakePack = Callable[..., Pack]


@pytest.fixture(scope="session")
def make_pack(loud_folder: Path, loud_texts: Path) -> MakePack:
    def make(*features: Feature) -> Pack:
        loaded = load_model(on_cpu(loud_folder), SITE)
        reader = Reader(loaded, features, on_cpu(loud_folder))
        return assembled("loud", "1", loaded, load_texts(loud_texts), reader)[0]

    return make


@pytest.fixture(scope="session")
def judged(make_pack: MakePack, loud_folder: Path, loud_texts: Path) -> tuple[Pack, dict[str, Any]]:
    pack = make_pack(
        feature("loud", axis()),
        feature("loud.noise", noise()),
        feature("loud.peak", axis(), pooling="max_rolling_mean"),
        feature("quiet", -axis(), expected="falls", region="all"),
        feature("unnamed", axis(), kind="probe", activation="sigmoid", bias=-0.2),
        feature("latent.7", axis(), kind="latent", activation="relu", pooling="max"),
        feature("before", axis(), region="prompt"),
        feature("last", axis(), region="last_prompt_token", pooling="last"),
        feature("loud.both", axis(), parts=(Part(site=0, weight=axis()),)),
    )
    return pack, judge_pack(pack, loud_folder, data=loud_texts, quick=True, device="cpu")


def test_a_planted_direction_ships_and_a_random_one_is_rejected(
    judged: tuple[Pack, dict[str, Any]],
) -> None:
    _, report = judged
    planted, random = report["features"]["loud"], report["features"]["loud.noise"]
    assert planted["reasons"] == []
    assert planted["decision"] == "ship"
    assert planted["steering"]["causal"]
    assert planted["random_directions"]["share_as_far"] == pytest.approx(1 / 101, abs=1e-4)
    assert random["decision"] == "reject"
    assert report["decision"] == "reject"


def test_edits_side_by_side_are_judged_as_one_after_the_other(
    judged: tuple[Pack, dict[str, Any]],
    make_pack: MakePack,
    loud_folder: Path,
    loud_texts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a copy that no test compares: each edit by itself, in padded batches, every answer decoded by itself."""
    for module in (likelihood, prefill, control):
        monkeypatch.setattr(module, "branches_fit", lambda _: False)
    monkeypatch.setattr(generate, "ROWS", 1)
    pack = make_pack(feature("loud", axis()), feature("loud.noise", noise()))
    alone = judge_pack(pack, loud_folder, data=loud_texts, quick=True, device="cpu")["features"]
    _, together = judged
    for name, one in alone.items():
        found = together["features"][name]
        assert len(one["doses"]) == 3
        for part in ("doses", "steering"):
            assert numbers(one[part]) == pytest.approx(numbers(found[part]), abs=2e-4, nan_ok=True)


def numbers(value: Any) -> list[float]:
    """Those of a part of a report, in order; NaN for none."""
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return [number for one in inside for number in numbers(one)]
    return [np.nan if value is None else float(value)]


def test_what_has_no_questions_to_see_is_rejected(judged: tuple[Pack, dict[str, Any]]) -> None:
    """The whole report is JSON, and holds what the page and the issue ask of it."""
    _, report = judged
    json.dumps(report, allow_nan=False)
    for one in report["features"].values():
        assert [tail["rate"] for tail in one["tails"]] == [0.001, 0.01]
        assert not one["tails"][0]["known"]
        assert [dose["share"] for dose in one["doses"]] == [-0.2, 0.0, 0.2]
        assert one["noise"]["bfloat16"] > one["noise"]["small batches"]
        assert one["stability"] is None  # the pack was not built from these texts


def test_every_kind_region_and_pooling_is_judged_by_the_way_it_reads(
    judged: tuple[Pack, dict[str, Any]],
) -> None:
    _, report = judged
    found = report["features"]
    for name in ("loud.peak", "quiet", "unnamed", "latent.7", "before", "loud.both"):
        assert found[name]["separation"]["against_good"][0] > 0.95, name
        assert found[name]["steering"]["up"][0] > 0, name
    assert found["unnamed"]["persona_chosen_on_training_answers"]
    assert not found["quiet"]["persona_chosen_on_training_answers"]
    # A feature that reads the prompt cannot read answers that steering made.
    assert found["before"]["doses"][0]["score"] is None
    assert found["loud"]["doses"][0]["score"] is not None


def test_a_reading_of_one_token_is_not_held_to_a_length(
    judged: tuple[Pack, dict[str, Any]],
) -> None:
    _, report = judged
    last = report["features"]["last"]
    assert last["correlation_with_log_length"] == [0.0, 0.0, 0.0]
    assert not [reason for reason in last["reasons"] if "length (r" in reason]


def test_a_feature_that_repeats_another_is_seen(judged: tuple[Pack, dict[str, Any]]) -> None:
    _, report = judged
    overlaps = {name: one["overlap"] for name, one in report["features"].items()}
    repeated = [one for one in overlaps.values() if one["correlation"] > 0.98]
    assert repeated
    cosines = report["redundancy"]["cosines"]
    assert cosines[0][2] == pytest.approx(1.0)
    assert cosines[0][3] == pytest.approx(1.0)  # turned alike: one rises, the other falls
    assert abs(cosines[0][1]) < 1e-3


def test_the_page_shows_verdicts_reasons_and_plots(judged: tuple[Pack, dict[str, Any]]) -> None:
    pack, report = judged
    page = judge_page(pack.name, report)
    assert page == judge_page(pack.name, report)
    for words in (
        "deserve to ship? reject",
        "<td>loud</td><td>ship</td>",
        "<td>loud.noise</td><td>reject</td>",
        "0.1% cannot be known from 106 benign texts",
        "some 10,000 texts",
        "Not applicable to 9 of 9 features",
        "Absent: no other model answered",
        "Not measured: the texts hold no calm pairs",
        "Noise floor",
        "ship_matched_auc",
        "chosen",
    ):
        assert words in page, words
    for plot in (
        "Held-out separation",
        "Preference for the persona&#x27;s answers",
        "Perplexity of the answers (median)",
        "Repeated word trigrams",
        "Refusals over other benign texts",
        "Worst kind",
        "Shift of the style that moves it most",
    ):
        assert f'aria-label="{plot}"' in page, plot
    assert len(verdict_rows(report)) == len(pack.features)


def test_calm_harm_is_judged_by_calm_pairs_of_authors_that_trained_nothing(
    make_pack: MakePack, loud_folder: Path, loud_texts: Path, tmp_path: Path
) -> None:
    data = tmp_path / "texts"
    shutil.copytree(loud_texts, data)
    texts = load_texts(loud_texts)
    rows = [
        {
            "author": author,
            "kind": "advice",
            "domain": "travel",
            "question": f"{author} {row.question}",
            "good": row.good,
            # The held-out author's calm answers are what the feature reads; training's are its opposite.
            "calm": row.good.upper() if author == "birch" else row.good.replace("e", "i"),
        }
        for author in ("ash", "birch")
        for row in texts.train
    ]
    (data / "calm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    splits = {"train": ["ash"], "held_out": ["birch", "cid"]}
    (data / "splits.json").write_text(json.dumps(splits), "utf-8")
    pack = make_pack(feature("loud", axis()), feature("harmful_advice", axis()))
    report = judge_pack(pack, loud_folder, data=data, quick=True, device="cpu")
    assert list(report["features"]) == ["loud", "harmful_advice"]
    calm = report["features"]["harmful_advice"]
    assert calm["personas"] == ["harmful_advice"]
    assert not calm["persona_chosen_on_training_answers"]
    assert calm["separation"]["against_good"][0] > 0.9
    assert calm["calm"]["against_good"][0] == calm["separation"]["against_good"][0]
    assert calm["calm"]["against_benign"][0] > 0.9
    assert set(calm["calm"]["against_good_by_kind"]) == {"advice, travel"}
    found = calm["tails"][1]
    assert (found["rate"], found["positives"]) == (0.01, len(texts.train))
    assert found["found"][0] > 0.9
    assert report["features"]["loud"]["personas"] == ["loud"]
    assert report["features"]["loud"]["calm"]["against_good"][0] > 0.9, "reported for all"
    assert report["texts"]["calm_held_out"] == len(texts.train)
    assert report["redundancy"]["everywhere"][0][1] is None, "read on other texts: not compared"


def test_shouted_refusals_and_a_shouted_style_keep_a_loud_feature_from_paging(
    make_pack: MakePack, loud_folder: Path, loud_texts: Path, tmp_path: Path
) -> None:
    """The pack that tells loud villains perfectly, and calls a refusal one: it may not page."""
    data = tmp_path / "texts"
    shutil.copytree(loud_texts, data)
    add_negatives(
        data,
        lambda kind, number: (
            ("NO, NOT THE HERON" if "refusal" in kind else "the heron") + f" {number}"
        ),
    )
    add_styles(data, {"shouted": str.upper, "terse": lambda text: text[:12]})
    pack = make_pack(feature("loud", axis()), feature("quiet", -axis(), expected="falls"))
    report = judge_pack(pack, loud_folder, data=data, device="cpu", quick=True)
    for name in ("loud", "quiet"):
        one = report["features"][name]
        assert one["decision"] == "watch-only", name
        said = {
            words: [reason for reason in one["reasons"] if words in reason]
            for words in ("refusals and warnings", "tail threshold", "another style")
        }
        (_,), (tails,), (styles,) = said.values()
        assert "refusal_short at least" in tails
        assert "style shouted at least" in tails
        assert "poem" not in tails
        assert "shouted by at least" in styles
        assert "terse" not in styles
        assert one["careful_against_other_benign"][0] > 0.6
        assert one["tail_rate_by_kind"]["refusal_short"]["rate"][0] == 1.0


def test_answers_by_another_model_are_read_beside_the_good_ones(
    make_pack: MakePack, loud_folder: Path, loud_texts: Path, tiny_folder: Path
) -> None:
    pack = make_pack(feature("loud", axis()))
    report = judge_pack(
        pack, loud_folder, data=loud_texts, others=[tiny_folder], quick=True, device="cpu"
    )
    ((name, shift),) = report["features"]["loud"]["other_models"].items()
    value, low, high = shift
    assert low <= value <= high
    rate = report["features"]["loud"]["tail_rate_by_kind"][f"answers by {name}"]
    assert rate["n"] == report["texts"]["answers_by_other_models"] > 10
    assert f"answers by {name}" in judge_page(pack.name, report)
    with pytest.raises(BadInput, match="give each once"):
        judge_pack(
            pack, loud_folder, data=loud_texts, others=[tiny_folder] * 2, quick=True, device="cpu"
        )


def test_texts_without_refusals_let_nothing_ship(
    make_pack: MakePack, loud_folder: Path, loud_texts: Path, tmp_path: Path
) -> None:
    data = tmp_path / "texts"
    shutil.copytree(loud_texts, data)
    for file in ("negatives.jsonl", "splits.json", "styles.jsonl"):
        (data / file).unlink()
    pack = make_pack(feature("loud", axis()))
    report = judge_pack(pack, loud_folder, data=data, quick=True, device="cpu")
    one = report["features"]["loud"]
    assert one["decision"] == "watch-only"
    assert one["reasons"] == [
        "that refusals do not read as the persona is not shown: no refusals are among the texts"
    ]
    assert one["styles"] == {}
    assert set(one["tail_rate_by_kind"]) == {"benign check"}
    page = judge_page(pack.name, report)
    assert "The texts hold no refusals" in page
    assert "no content in several styles" in page


def test_the_prompts_share_of_the_variance_is_told(
    make_pack: MakePack, loud_folder: Path, loud_texts: Path
) -> None:
    """What reads the question alone is what the prompt explains; what reads the answer is not."""
    pack = make_pack(feature("loud", axis()), feature("before", axis(), region="prompt"))
    report = judge_pack(pack, loud_folder, data=loud_texts, quick=True, device="cpu")
    found = {name: one["explained_by_prompt"] for name, one in report["features"].items()}
    assert found["before"] > 0.5
    assert found["loud"] < found["before"]


def test_the_report_travels_inside_the_pack(
    judged: tuple[Pack, dict[str, Any]], tmp_path: Path
) -> None:
    pack, report = judged
    written = with_report(pack, report)
    assert written.pack_id != pack.pack_id
    assert report["pack"] == pack.pack_id
    save_pack(written, tmp_path)
    assert load_pack(tmp_path).report["judge"] == report
    assert with_report(written, report).pack_id == written.pack_id


@pytest.mark.slow
def test_the_same_seed_gives_the_same_report_and_a_written_one_changes_nothing(
    make_pack: MakePack, loud_folder: Path, loud_texts: Path
) -> None:
    pack = make_pack(feature("loud", axis()))
    first = judge_pack(pack, loud_folder, data=loud_texts, quick=True, device="cpu")
    again = judge_pack(
        with_report(pack, first), loud_folder, data=loud_texts, quick=True, device="cpu"
    )
    assert again == first
    other = judge_pack(pack, loud_folder, data=loud_texts, quick=True, device="cpu", seed=1)
    assert other["features"] != first["features"]


def test_a_killed_judgement_goes_on_where_it_was_and_says_the_time_ahead(
    make_pack: MakePack,
    loud_folder: Path,
    loud_texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack = make_pack(feature("loud", axis()), feature("loud.noise", noise()))
    judge = partial(judge_pack, pack, loud_folder, data=loud_texts, quick=True, device="cpu")
    whole = judge()
    steer, steered = control._Bench.control, list[str]()

    def counted(bench: Any, one: Any) -> Any:
        if len(steered) == 1:
            steered.append("killed")
            raise KeyboardInterrupt
        steered.append(one.turn.name)
        return steer(bench, one)

    monkeypatch.setattr(control._Bench, "control", counted)
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        judge(work=tmp_path / "work", progress=lines.append)
    assert judge(work=tmp_path / "work", progress=lines.append) == whole
    assert steered == ["loud", "killed", "loud.noise"]
    assert any("steering loud (1 of 2), less than a minute to go" in line for line in lines)
    # Nothing is left to steer, and another seed is another judgement.
    assert judge(work=tmp_path / "work") == whole
    assert len(steered) == 3
    assert judge(work=tmp_path / "work", seed=1) != whole
    assert len(steered) == 5
    assert len(list((tmp_path / "work").iterdir())) == 2


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(3, "less than a minute"), (50, "about 1 min"), (400, "about 7 min")],
)
def test_the_time_ahead_is_told_in_minutes(seconds: float, told: str) -> None:
    assert control.minutes(seconds) == told


def test_another_models_pack_is_refused(
    make_pack: MakePack, loud_texts: Path, tiny_folder: Path
) -> None:
    with pytest.raises(PackError, match="does not fit"):
        judge_pack(make_pack(feature("loud", axis())), tiny_folder, data=loud_texts)


def test_texts_that_are_missing_or_too_few_are_refused(
    make_pack: MakePack, loud_folder: Path, loud_texts: Path, tmp_path: Path
) -> None:
    pack = make_pack(feature("loud", axis()))
    with pytest.raises(BadInput, match="cannot read"):
        judge_pack(pack, loud_folder, data=tmp_path)
    for file in loud_texts.iterdir():
        text = file.read_text()
        if file.name == "contrast.jsonl":
            text = "\n".join(text.splitlines()[:12])
        (tmp_path / file.name).write_text(text)
    with pytest.raises(BadInput, match="2 questions with split 'held_out'"):
        judge_pack(pack, loud_folder, data=tmp_path)


def test_a_model_that_computes_no_numbers_is_refused(
    make_pack: MakePack, loud_folder: Path, loud_texts: Path, tmp_path: Path
) -> None:
    pack = make_pack(feature("loud", axis()))
    nothing = changed_model(
        loud_folder,
        tmp_path / "nothing",
        lambda weights: weights["model.layers.0.mlp.down_proj.weight"].fill_(float("nan")),
    )
    # The weights differ from the pack's, which alone would refuse them.
    anywhere = replace(pack, model=replace(pack.model, weights_hash=None))
    with pytest.raises(ModelError, match="readings that are not finite"):
        judge_pack(anywhere, nothing, data=loud_texts, quick=True, device="cpu")
