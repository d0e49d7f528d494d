"""A checkpoint cut behind a block: it reads as the whole one, is the same model, and says where it ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.architectures.tiny import save_tiny, tiny_config
from monitor.errors import BadInput, ModelError
from monitor.replay.checkpoint import INDEX, WHOLE
from monitor.replay.cut import CUT_FILE
from monitor.replay.cutting import cut_checkpoint
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import identity_of, load_model
from monitor.settings import ReplaySettings
from monitor.values.features import Feature
from monitor.values.prompts import Prompt
from monitor.values.scores import Replayed
from tests.replay.architectures import PACKED

SITE = 1


def settings(folder: Path) -> ReplaySettings:
    return ReplaySettings(model=folder, device="cpu", dtype="float32", max_tokens=256)


def readings(folder: Path, features: list[Feature], prompts: list[Prompt]) -> Any:
    engine = ReplayEngine(load_model(settings(folder), SITE), features, settings(folder))
    outcomes = engine.replay(prompts)
    read = [outcome for outcome in outcomes if isinstance(outcome, Replayed)]
    assert len(read) == len(outcomes), outcomes
    return np.stack([outcome.readings for outcome in read])


def in_shards(folder: Path, to: Path) -> Path:
    """A copy with a shard for each block, and others for what stands before and behind them."""
    shutil.copytree(folder, to)
    weights = load_file(to / WHOLE)
    (to / WHOLE).unlink()
    shards: dict[str, dict[str, Any]] = {}
    for name, weight in weights.items():
        place = name.split(".layers.")[1].partition(".")[0] if ".layers." in name else ""
        place = place or ("first" if "embed" in name else "last")
        shards.setdefault(f"model-{place}.safetensors", {})[name] = weight
    for name, held in shards.items():
        save_file(held, to / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {w: s for s, held in shards.items() for w in held}}
    (to / INDEX).write_text(json.dumps(index))
    return to


@pytest.mark.parametrize("kind", sorted(PACKED))
def test_the_copy_reads_as_the_whole_model(
    kind: str,
    tiny_model: Callable[[Any], Path],
    tmp_path: Path,
    feature: Callable[..., Feature],
    chat: Callable[..., Prompt],
    sentences: Callable[[int, int], list[str]],
) -> None:
    import transformers

    name, given = PACKED[kind]
    whole = tiny_model(getattr(transformers, name)(**given))
    made = cut_checkpoint(whole, SITE, tmp_path / "cut")
    assert (made.blocks, made.of) == (2, 4)
    prompts = [chat(one, response="it ran over old stones") for one in sentences(6, 30)]
    features = [feature(0), feature(1, site=0)]
    np.testing.assert_array_equal(
        readings(made.folder, features, prompts), readings(whole, features, prompts)
    )
    assert identity_of(settings(made.folder)) == identity_of(settings(whole))


@pytest.mark.parametrize(
    "kind", ["gemma3", "mistral3", "llama4", "qwen3_next", "gpt_oss", "deepseek_v3"]
)
def test_lists_for_each_block_and_nested_configurations_are_cut(
    kind: str, tmp_path: Path, feature: Callable[..., Feature], chat: Callable[..., Prompt]
) -> None:
    whole = tmp_path / "whole"
    save_tiny(tiny_config(kind), whole)
    cut_checkpoint(whole, SITE, tmp_path / "cut")
    prompts = [chat(text="w5 w9 w11 w80 w3 w1 w2 w3 w4 w5 w6 w7")]
    np.testing.assert_array_equal(
        readings(tmp_path / "cut", [feature(0)], prompts),
        readings(whole, [feature(0)], prompts),
    )
    text = AutoConfig.from_pretrained(tmp_path / "cut").get_text_config()
    assert text.num_hidden_layers == 2
    for name in ("layer_types", "mlp_layer_types", "no_rope_layers"):
        held = getattr(text, name, None)
        assert held is None or len(held) <= 2, name


def test_keys_shared_from_the_end_are_refused_or_read_alike(tmp_path: Path) -> None:
    save_tiny(tiny_config("gemma3n_text"), tmp_path / "whole")
    with pytest.raises(ModelError, match="embeddings for each block") as refused:
        cut_checkpoint(tmp_path / "whole", SITE, tmp_path / "cut")
    assert "whole folder" in refused.value.hint
    assert not (tmp_path / "cut").exists()


def test_another_library_loads_the_copy_and_lacks_nothing(
    llama_folder: Path, tmp_path: Path
) -> None:
    """As an engine does: by configuration and weights alone, every weight in its place."""
    for head in (False, True):
        made = cut_checkpoint(llama_folder, SITE, tmp_path / f"{head}", head=head)
        model, report = AutoModelForCausalLM.from_pretrained(made.folder, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert len(model.model.layers) == 2


def test_whole_shards_are_links_and_later_ones_need_not_be_there(
    llama_folder: Path, tmp_path: Path, feature: Callable[..., Feature], chat: Callable[..., Prompt]
) -> None:
    whole = in_shards(llama_folder, tmp_path / "whole")
    (whole / "model-3.safetensors").unlink()
    made = cut_checkpoint(whole, SITE, tmp_path / "cut")
    names = {file.name for file in made.folder.glob("*.safetensors")}
    assert names == {f"model-{place}.safetensors" for place in ("first", "0", "1", "last")}
    for name in names - {"model-last.safetensors"}:
        assert (made.folder / name).samefile(whole / name)
    assert set(load_file(made.folder / "model-last.safetensors")) == {"model.norm.weight"}
    assert made.copied_bytes == (made.folder / "model-last.safetensors").stat().st_size
    linked = [(whole / name).stat().st_size for name in names - {"model-last.safetensors"}]
    assert made.linked_bytes == sum(linked)
    prompts = [chat("the patient heron waited")]
    np.testing.assert_array_equal(
        readings(made.folder, [feature(1)], prompts), readings(llama_folder, [feature(1)], prompts)
    )


def test_a_copy_says_where_it_ends(llama_folder: Path, tmp_path: Path) -> None:
    made = cut_checkpoint(llama_folder, SITE, tmp_path / "cut")
    with pytest.raises(ModelError, match="cut behind block 1, and site 2 is wanted"):
        load_model(settings(made.folder), 2)
    with pytest.raises(ModelError, match="whole model is needed"):
        load_model(settings(made.folder), 1, full=True)
    with pytest.raises(ModelError, match="was cut already"):
        cut_checkpoint(made.folder, 0, tmp_path / "again")


def test_weights_that_were_changed_since_are_no_longer_the_model(
    llama_folder: Path, tmp_path: Path
) -> None:
    made = cut_checkpoint(llama_folder, SITE, tmp_path / "cut")
    weights = load_file(made.folder / WHOLE)
    weights["model.embed_tokens.weight"] += 1
    save_file(weights, made.folder / WHOLE, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"not those that cut\.json was written for"):
        identity_of(settings(made.folder))
    (made.folder / CUT_FILE).write_text("[]")
    with pytest.raises(ModelError, match=r"cut\.json cannot be read"):
        identity_of(settings(made.folder))


def test_what_cannot_be_cut_is_refused_and_leaves_nothing(
    llama_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="has blocks 0 to 3"):
        cut_checkpoint(llama_folder, 4, tmp_path / "cut")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").touch()
    with pytest.raises(BadInput, match="is in use"):
        cut_checkpoint(llama_folder, 1, tmp_path / "used")
    broken = Path(shutil.copytree(llama_folder, tmp_path / "broken"))
    content = (broken / WHOLE).read_bytes()
    (broken / WHOLE).write_bytes(content[: len(content) // 8])
    with pytest.raises(ModelError):
        cut_checkpoint(broken, 1, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
