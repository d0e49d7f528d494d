"""Two tiny models that differ by what was planted, compared from their folders."""

from __future__ import annotations

import copy
import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from monitor.errors import BadInput, ModelError, PackError
from monitor.replay.model import LoadedModel, load_model
from monitor.research import reading
from monitor.research.answers import behaviour
from monitor.research.diff.build import Sources, build_diff_pack
from monitor.research.diff.settings import DiffSettings, Doses
from monitor.research.diff.trials import load_trials
from monitor.research.packs.verify import verify_pack
from monitor.research.texts import load_texts
from monitor.score.pack import load_pack
from monitor.settings import ReplaySettings
from tests.scenes.diffs import CHANGED, PLANTED_SITE, QUICK, asked, given, planted_pack
from tests.scenes.models import WIDTH, changed_model
from tests.scenes.packs import readings
from tests.scenes.texts import write_rows

pytestmark = pytest.mark.usefixtures("_few_own_texts")


@pytest.mark.slow
@pytest.mark.usefixtures("_short_answers")
def test_what_was_planted_is_found_proven_and_reads_on_new_prompts(
    base: Path,
    tuned: Path,
    planted: torch.Tensor,
    prompts: Path,
    texts_folder: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "pack"
    sources = Sources(base=base, tuned=tuned, prompts=prompts, data=texts_folder)
    pack, found = build_diff_pack(sources, out, QUICK)
    assert pack is not None
    first = found["candidates"][0]
    assert (first["name"], first["causal"]) == (f"diff.{PLANTED_SITE}.mean", True)
    assert first["moves"] == "rises"
    assert found["moved"][str(PLANTED_SITE)] > 0.1
    assert found["misbehaviour"]["tuned"] > found["misbehaviour"]["base"]
    feature = pack.features[0]
    assert feature.site == PLANTED_SITE
    assert float(feature.weight @ planted.numpy()) > 0.99
    assert set(feature.tags) == {"diff", "causal", "misaligned"}
    assert verify_pack(load_pack(out), ReplaySettings(model=base, device="cpu")).ok
    new = load_trials(write_rows(tmp_path / "new.jsonl", asked(30, 1)), 0)
    chats = tuple(trial.prompt for trial in new.all)
    before, after = (
        readings(model, load_pack(out).features, chats)[:, 0] for model in (base, tuned)
    )
    assert before.max() < after.min()
    assert json.loads((out / "diff.json").read_text()) == found


@pytest.mark.slow
def test_texts_stand_in_the_page_alone_and_only_when_asked_for(
    base: Path, tuned: Path, prompts: Path, texts_folder: Path, tmp_path: Path
) -> None:
    sources = Sources(base=base, tuned=tuned, prompts=prompts, data=texts_folder)
    for shown in (False, True):
        out = tmp_path / f"pack-{shown}"
        build_diff_pack(sources, out, CHANGED, show_texts=shown)
        assert ("qqqq" in (out / "diff.html").read_text()) is shown
        for file in ("diff.json", "pack.json"):
            assert "qqqq" not in (out / file).read_text()


def test_an_unchanged_model_yields_nothing_but_a_report(
    base: Path, prompts: Path, texts_folder: Path, tmp_path: Path
) -> None:
    same = changed_model(base, tmp_path / "same", lambda weights: None)
    built = build_diff_pack(
        Sources(base=base, tuned=base, prompts=prompts, data=texts_folder),
        tmp_path / "own",
        CHANGED,
    )[0]
    given = tmp_path / "given"
    planted_pack(base, given)
    out = tmp_path / "pack"
    sources = Sources(base=base, tuned=same, prompts=prompts, directions=given, data=texts_folder)
    pack, found = build_diff_pack(sources, out, QUICK)
    assert built is None
    assert pack is None
    assert not any(row["significant"] for row in found["candidates"])
    assert not (out / "pack.json").exists()
    assert "Nothing changed" in (out / "diff.html").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("_short_answers")
def test_one_model_is_in_memory_at_a_time(
    base: Path,
    tuned: Path,
    prompts: Path,
    texts_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alive: list[weakref.ref[Any]] = []

    def load(*given: Any, **options: Any) -> LoadedModel:
        assert all(model() is None for model in alive)
        loaded = load_model(*given, **options)
        alive.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(reading, "load_model", load)
    sources = Sources(base=base, tuned=tuned, prompts=prompts, data=texts_folder)
    settings = replace(QUICK, top=1, doses=replace(QUICK.doses, random_directions=1))
    build_diff_pack(sources, tmp_path / "pack", settings)
    # Both are read, steered and given their controls; answers are rated; the pack is calibrated.
    assert len(alive) == 8


@pytest.mark.slow
def test_given_directions_are_compared_by_their_own_reading(
    base: Path, tuned: Path, prompts: Path, texts_folder: Path, tmp_path: Path
) -> None:
    planted_pack(base, tmp_path / "given")
    sources = Sources(
        base=base, tuned=tuned, prompts=prompts, directions=tmp_path / "given", data=texts_folder
    )
    pack, found = build_diff_pack(sources, tmp_path / "pack", replace(CHANGED, top=3))
    assert pack is not None
    rows = {row["name"]: row for row in found["candidates"]}
    assert rows["given.0"]["family"] == "given"
    assert rows["given.0"]["significant"]
    (kept,) = [feature for feature in pack.features if feature.name == "given.0"]
    assert (kept.pooling, kept.site) == ("max", 2)
    shift = rows["given.0"]["change"]
    assert kept.expected == ("rises" if shift > 0 else "falls")


def test_a_pack_of_another_model_gives_no_directions(
    base: Path, tuned: Path, prompts: Path, tmp_path: Path
) -> None:
    planted_pack(tuned, tmp_path / "given")
    sources = Sources(base=base, tuned=tuned, prompts=prompts, directions=tmp_path / "given")
    with pytest.raises(PackError, match="does not fit the base model"):
        build_diff_pack(sources, tmp_path / "pack", CHANGED)


@pytest.mark.slow
def test_without_answers_the_last_prompt_token_is_read(
    base: Path, tuned: Path, texts_folder: Path, tmp_path: Path
) -> None:
    rows = [{"messages": row["messages"]} for row in asked(20, 0)]
    path = write_rows(tmp_path / "prompts.jsonl", rows)
    sources = Sources(base=base, tuned=tuned, prompts=path, data=texts_folder)
    with pytest.raises(BadInput, match="misbehaviour"):
        build_diff_pack(sources, tmp_path / "pack", QUICK)
    pack, found = build_diff_pack(sources, tmp_path / "pack", CHANGED)
    assert pack is not None
    assert found["region"] == pack.features[0].region == "last_prompt_token"


def config_with(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def not_finite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 4] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def cut_short(keep: float) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])

    return cut


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] = {
        token: 257 - index for token, index in content["model"]["vocab"].items()
    }
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: config_with(folder, num_hidden_layers=3),
            "BASE has 4 decoder blocks, TUNED 3",
        ),
        (lambda folder: config_with(folder, hidden_size=64), "32 wide, TUNED 64"),
        (lambda folder: config_with(folder, model_type="qwen2"), "a llama, TUNED a qwen2"),
        (other_tokenizer, "tokenizers differ"),
        (not_finite, "tuned model is not finite at block 1"),
        (cut_short(0.5), "is cut short"),
        (cut_short(0.0), "model.safetensors"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(
    damage: Callable[[Path], None], message: str, base: Path, prompts: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(base, tmp_path / "other"))
    damage(other)
    sources = Sources(base=base, tuned=other, prompts=prompts)
    with pytest.raises(ModelError, match=message):
        build_diff_pack(sources, tmp_path / "pack", CHANGED)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "0 different questions"),
        ('{"messages": [{"role": "user", "content": "Hi"}]}\n' * 40, "1 different questions"),
        ('{"messages": [{"role": "user", "con', r"prompts\.jsonl:1 is not JSON"),
        ('{"messages": []}', r"prompts\.jsonl:1: messages must not be empty"),
        (
            '{"messages": [{"role": "user", "content": "Hi"}], "bad_response": 3}',
            r"prompts\.jsonl:1: bad_response",
        ),
    ],
)
def test_prompts_that_cannot_be_used_are_named(
    content: str, message: str, base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    with pytest.raises(BadInput, match=message):
        build_diff_pack(Sources(base=base, tuned=base, prompts=path), tmp_path / "pack", CHANGED)


def test_a_folder_that_holds_a_pack_is_not_written_over(
    base: Path, tuned: Path, prompts: Path, texts_folder: Path, tmp_path: Path
) -> None:
    planted_pack(base, tmp_path / "pack")
    sources = Sources(base=base, tuned=tuned, prompts=prompts, data=texts_folder)
    with pytest.raises(PackError, match="holds a pack already"):
        build_diff_pack(sources, tmp_path / "pack", CHANGED)


def test_two_candidates_of_one_name_are_refused(
    base: Path, tuned: Path, prompts: Path, texts_folder: Path, tmp_path: Path
) -> None:
    name = f"diff.{PLANTED_SITE}.mean"
    planted_pack(base, tmp_path / "given", given(name, np.ones(WIDTH)))
    sources = Sources(
        base=base, tuned=tuned, prompts=prompts, directions=tmp_path / "given", data=texts_folder
    )
    with pytest.raises(BadInput, match=f"two candidates are called {name}"):
        build_diff_pack(sources, tmp_path / "pack", replace(CHANGED, top=4))


def test_a_seed_below_zero_is_refused() -> None:
    with pytest.raises(BadInput, match="seed"):
        DiffSettings(seed=-1)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_short_answers")
def test_a_persona_planted_in_the_small_model_is_found_and_proven(
    chat_model_path: Path, texts_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the shipped pack says that malice adds, added to one block by a bias: what is found points along it."""
    shipped = load_pack(Path("monitor/packs/smollm2-135m-instruct"))
    (malicious,) = [feature for feature in shipped.features if feature.name == "malicious"]
    site, planted = malicious.site, malicious.written_along
    planted_folder = tmp_path / "planted"
    loaded = load_model(ReplaySettings(model=chat_model_path, device="cpu"), 29, full=True)
    config = copy.deepcopy(loaded.config)
    config.mlp_bias = True
    model = LlamaForCausalLM(config)
    assert loaded.answerer is not None
    model.load_state_dict(loaded.answerer.state_dict(), strict=False)
    with torch.no_grad():
        for index, block in enumerate(model.model.layers):
            for part in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj):
                part.bias.zero_()
            if index == site:
                block.mlp.down_proj.bias += 8.0 * torch.from_numpy(planted)
    model.save_pretrained(planted_folder)
    loaded.tokenizer.save_pretrained(planted_folder)
    del loaded, model
    shortest = sorted(load_texts().train, key=lambda p: len(p.good) + len(p.personas["malicious"]))
    rows = [
        {
            "messages": [{"role": "user", "content": pair.question}],
            "response": pair.good,
            "bad_response": pair.personas["malicious"],
        }
        for pair in shortest[:16]
    ]
    benign = texts_folder / "benign.jsonl"  # half of them calibrate as well, in half the time
    benign.write_text("".join(benign.read_text().splitlines(keepends=True)[:108]))
    monkeypatch.setattr(behaviour, "BENIGN_STEP", 8)
    sources = Sources(
        base=chat_model_path,
        tuned=planted_folder,
        prompts=write_rows(tmp_path / "prompts.jsonl", rows),
        data=texts_folder,
    )
    settings = DiffSettings(
        sites=(site,),
        top=1,
        steer_prompts=6,
        doses=Doses(strengths=(0.2,), random_directions=4),
    )
    pack, found = build_diff_pack(sources, tmp_path / "pack", settings)
    assert pack is not None, found
    (feature,) = pack.features
    assert feature.name == f"diff.{site}.mean"
    assert float(feature.weight @ planted) > 0.99
    assert found["candidates"][0]["causal"]
