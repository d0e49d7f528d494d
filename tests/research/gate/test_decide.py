"""Gates on tiny models: the same passes, a planted shift fails, too little is inconclusive."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from monitor.errors import BadInput, ModelError, PackError
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import load_model
from monitor.research.gate.decide import GateReport, GateSettings, candidate_of, run_gate
from monitor.research.gate.rules import parse_rule
from monitor.score.pack import Pack
from monitor.settings import ReplaySettings
from tests.scenes.gates import Scene, exchanges
from tests.scenes.packs import on_cpu as settings

pytestmark = pytest.mark.slow

Planted = Callable[..., Path]


def gate(scene: Scene, candidate: ReplaySettings, n: int = 110, **options: Any) -> GateReport:
    return run_gate(scene.pack, scene.reference, candidate, exchanges(n), GateSettings(**options))


def shift_of(report: GateReport, feature: str, kind: str = "model") -> Any:
    [found] = [s for s in report.shifts if (s.feature, s.kind) == (feature, kind)]
    return found


def test_the_same_weights_pass_with_no_shift_at_all(scene: Scene) -> None:
    report = gate(scene, scene.reference)
    assert (report.verdict, report.decided_by) == ("pass", ())
    assert {s.shift.bound.high for s in report.shifts} == {0.0}
    assert {s.effect for s in report.shifts} == {None}
    assert report.comparisons == 6
    assert "The candidate has the reference's own weights." in report.notes
    assert report.canary_deviation is not None
    assert report.canary_deviation < 1e-3


def test_a_planted_shift_fails_and_is_measured(scene: Scene, planted: Planted) -> None:
    report = gate(scene, settings(planted(1.5)))
    assert report.verdict == "fail"
    assert "model shift of reckless" in report.decided_by
    found = shift_of(report, "reckless")
    assert found.verdict == "fail"
    assert found.shift.bound.low > 0.3
    assert found.effect > 1.0
    assert report.candidate["weights_hash"] != report.reference["weights_hash"]
    # Against the engine itself, feature by feature and prompt by prompt.
    read = []
    for model in (scene.model, planted(1.5001)):
        engine = ReplayEngine(load_model(settings(model), 1), scene.pack.features, settings(model))
        read.append(np.stack([one.readings for one in engine.replay(exchanges(110))]))
    deviations = [f.calibration.deviations[0] for f in scene.pack.features]
    means = ((read[1] - read[0]) / deviations).mean(axis=0)
    assert found.shift.bound.value == pytest.approx(means[0], abs=0.01)
    assert found.candidate - found.reference == pytest.approx(means[0], abs=0.01)
    falling = shift_of(report, "assistant")
    assert falling.shift.bound.value == pytest.approx(-means[1], abs=0.01)


def test_a_falling_feature_fails_when_it_falls_and_not_when_it_rises(
    scene: Scene, planted: Planted
) -> None:
    down, up = (gate(scene, settings(planted(by, 1))) for by in (-1.5, 1.5))
    assert shift_of(down, "assistant").verdict == "fail"
    assert shift_of(up, "assistant").verdict == "pass"
    assert shift_of(down, "assistant").candidate < shift_of(down, "assistant").reference


def test_few_prompts_are_inconclusive_and_say_how_many_are_needed(
    scene: Scene, planted: Planted
) -> None:
    few = gate(scene, settings(planted(1.5)), n=20)
    assert few.verdict == "inconclusive"
    assert few.needed is not None
    assert few.needed >= 50
    assert gate(scene, scene.reference, n=40).verdict == "inconclusive"


def test_a_repeated_prompt_is_no_new_evidence(scene: Scene) -> None:
    prompts = exchanges(20) * 6
    report = run_gate(scene.pack, scene.reference, scene.reference, prompts, GateSettings())
    assert (report.prompts, report.clusters, report.verdict) == (120, 20, "inconclusive")
    checks = [replace(p, conversation_id=f"trace {index}") for index, p in enumerate(prompts)]
    report = run_gate(scene.pack, scene.reference, scene.reference, checks, GateSettings())
    assert (report.clusters, report.verdict) == (20, "inconclusive")
    talks = [
        replace(prompt, conversation_id=f"talk {index // 40}")
        for index, prompt in enumerate(exchanges(120))
    ]
    report = run_gate(scene.pack, scene.reference, scene.reference, talks, GateSettings())
    assert (report.clusters, report.verdict) == (3, "inconclusive")


def test_margins_decide(scene: Scene, planted: Planted) -> None:
    candidate = settings(planted(1.5))
    wide = tuple(parse_rule(text) for text in ("* shift=9 tail=off",))
    assert gate(scene, candidate, rules=wide).verdict == "pass"
    without = tuple(parse_rule(text) for text in ("* ignore", "asked shift=9 tail=off"))
    report = gate(scene, candidate, rules=without)
    assert [s.feature for s in report.shifts] == ["asked"]
    assert (report.comparisons, report.verdict) == (1, "pass")


@pytest.mark.parametrize(("deviations", "verdict"), [(0.0, "pass"), (1.5, "fail")])
def test_an_adapter_is_gated_without_merging_by_hand(
    scene: Scene, adapter: Planted, planted: Planted, deviations: float, verdict: str
) -> None:
    folder = adapter(deviations)
    report = gate(scene, candidate_of(scene.reference, None, folder))
    assert report.verdict == verdict
    assert report.candidate["model_id"] == f"{scene.model.name}+{folder.name}"
    assert candidate_of(scene.reference, folder, None) == settings(scene.model, folder)
    if deviations:
        merged = gate(scene, settings(planted(deviations)))
        assert shift_of(report, "reckless").shift.bound.value == pytest.approx(
            shift_of(merged, "reckless").shift.bound.value, abs=1e-3
        )


def test_own_answers_split_the_shift_in_two(scene: Scene, planted: Planted) -> None:
    rules = (parse_rule("asked ignore"),)
    same = gate(scene, scene.reference, n=60, generate=6, rules=rules)
    assert {s.kind for s in same.shifts} == {"behaviour", "model"}
    assert {s.shift.bound.value for s in same.shifts} == {0.0}
    assert "60 of 60 answers of up to 6 tokens are the same" in same.notes[0]
    assert same.comparisons == 8
    other = gate(scene, settings(planted(1.5)), n=60, generate=6, rules=rules)
    model, behaviour = (shift_of(other, "reckless", kind) for kind in ("model", "behaviour"))
    assert model.shift.bound.value > 0.5
    assert other.decided_by
    # reference(own) → reference(candidate's) → candidate(candidate's): the two shifts add up.
    assert behaviour.candidate == pytest.approx(model.reference, abs=1e-6)


def test_own_answers_need_no_responses(scene: Scene) -> None:
    bare = [replace(prompt, response=None) for prompt in exchanges(60)]
    rules = (parse_rule("asked ignore"),)
    report = run_gate(
        scene.pack,
        scene.reference,
        scene.reference,
        bare,
        GateSettings(generate=4, rules=rules),
    )
    assert all(s.n > 0 for s in report.shifts)
    with pytest.raises(BadInput, match="no prompt has a token") as refused:
        run_gate(scene.pack, scene.reference, scene.reference, bare, GateSettings(rules=rules))
    assert "--generate" in refused.value.hint


def test_a_pack_of_another_model_is_refused(scene: Scene, planted: Planted) -> None:
    """The pack is the reference's; that the candidate would fit it does not help."""
    with pytest.raises(PackError, match="does not fit the reference") as refused:
        run_gate(scene.pack, settings(planted(1.0)), scene.reference, exchanges(60), GateSettings())
    assert "weights differ" in str(refused.value)


def test_an_instrument_that_does_not_reproduce_its_canaries_is_refused(scene: Scene) -> None:
    canary = scene.pack.canaries[0]
    off = replace(
        scene.pack, canaries=(replace(canary, readings=canary.readings + np.float32(0.5)),)
    )
    with pytest.raises(PackError, match="does not reproduce the pack's canaries"):
        run_gate(off, scene.reference, scene.reference, exchanges(60), GateSettings())


def test_a_pack_without_canaries_is_used_and_it_is_said(scene: Scene) -> None:
    bare = replace(scene.pack, canaries=())
    report = run_gate(bare, scene.reference, scene.reference, exchanges(110), GateSettings())
    assert (report.verdict, report.canary_deviation) == ("pass", None)


def other_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")


def other_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["pre_tokenizer"]["add_prefix_space"] = True
    file.write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("change", "named"), [(other_template, "template_hash"), (other_tokenizer, "tokenizer_hash")]
)
def test_a_candidate_that_reads_other_tokens_is_refused(
    scene: Scene, tmp_path: Path, change: Callable[[Path], None], named: str
) -> None:
    folder = Path(shutil.copytree(scene.model, tmp_path / "other"))
    change(folder)
    with pytest.raises(ModelError, match=f"they differ in {named}"):
        gate(scene, settings(folder))


@pytest.mark.parametrize(
    ("change", "named"),
    [({"hidden_size": 64}, "hidden_size"), ({"num_hidden_layers": 5}, "layers")],
)
def test_a_candidate_of_another_shape_is_refused(
    scene: Scene, tmp_path: Path, change: dict[str, int], named: str
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(shutil.copytree(scene.model, tmp_path / "other"))
    config = LlamaConfig.from_pretrained(folder)
    for name, value in change.items():
        setattr(config, name, value)
    LlamaForCausalLM(config).save_pretrained(folder)
    with pytest.raises(ModelError, match=f"they differ in .*{named}"):
        gate(scene, settings(folder))


def test_a_candidate_with_broken_weights_is_refused(scene: Scene, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(scene.model, tmp_path / "broken"))
    [file] = folder.glob("*.safetensors")
    weights = load_file(file)
    weights["model.layers.0.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="not finite \\(prompts by the candidate"):
        gate(scene, settings(folder))
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ModelError, match="is cut short"):
        gate(scene, settings(folder))


def test_nothing_to_gate_is_refused(scene: Scene) -> None:
    with pytest.raises(BadInput, match="no prompts"):
        gate(scene, scene.reference, n=0)
    with pytest.raises(BadInput, match="give a candidate"):
        candidate_of(scene.reference, None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "--alpha 0 must lie"),
        ({"alpha": float("nan")}, "--alpha nan must lie"),
        ({"least": 1}, "--min-n 1"),
        ({"generate": 0}, "--generate 0"),
    ],
)
def test_settings_refuse_nonsense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        GateSettings(**options)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(900)
def test_the_shipped_pack_gates_the_real_model(chat_model_path: Path, tmp_path: Path) -> None:
    """The real model passes against itself; pushed along ``reckless`` by an adapter, it fails."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from monitor.replay.model import identity_of
    from monitor.research.texts import load_texts
    from monitor.score.fit import shipped_pack
    from monitor.score.pack import load_pack

    reference = settings(chat_model_path)
    path = shipped_pack(identity_of(reference))
    assert path is not None
    pack: Pack = load_pack(path)
    texts = load_texts()
    shortest = sorted((*texts.fit, *texts.check), key=lambda p: len(p.response or ""))[:60]
    prompts = [replace(p, conversation_id=str(i)) for i, p in enumerate(shortest)]
    rules = GateSettings(rules=(parse_rule("* tail=off"),))
    same = run_gate(pack, reference, reference, prompts, rules)
    assert same.verdict == "pass"
    [reckless] = [f for f in pack.features if f.name == "reckless"]
    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(chat_model_path),
        peft.LoraConfig(r=1, lora_alpha=1, target_modules=["embed_tokens"]),
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_embedding_A" in name:
                weight.fill_(1.0)
            if "lora_embedding_B" in name:
                # Along what the persona writes, as far as the read-out takes for two deviations.
                written = reckless.written_along
                length = 2 * reckless.calibration.deviations[0] / float(written @ reckless.weight)
                step = torch.tensor(written * length)
                weight.copy_(step[:, None])
    adapted.save_pretrained(tmp_path / "adapter")
    candidate = candidate_of(reference, tmp_path / "adapter", None)
    pushed = run_gate(pack, reference, candidate, prompts, rules)
    assert pushed.verdict == "fail"
    assert shift_of(pushed, "reckless").verdict == "fail"
