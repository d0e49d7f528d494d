from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, Qwen2Config

from monitor.errors import BadInput, ModelError
from monitor.replay.answer import stock_attention
from monitor.replay.model import LoadedModel, load_model
from monitor.replay.taps import Edit, steered, tapped
from monitor.settings import ReplaySettings

IDS = torch.tensor([[5, 17, 33, 8, 90, 41]])
MAKE = {
    "qwen2": lambda: Qwen2Config(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    ),
    "gpt2": lambda: GPT2Config(vocab_size=400, n_embd=32, n_layer=3, n_head=4, n_positions=256),
}


def unit(seed: int, width: int = 32) -> torch.Tensor:
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


@pytest.fixture(scope="module", params=["llama", "qwen2", "gpt2"])
def loaded(
    request: pytest.FixtureRequest, tiny_model: Callable[[Any], Path], llama_folder: Path
) -> LoadedModel:
    folder = llama_folder if request.param == "llama" else tiny_model(MAKE[request.param]())
    return load_model(ReplaySettings(model=folder, device="cpu", dtype="float32"), 2, full=True)


def residuals(
    loaded: LoadedModel, edits: list[Edit], ids: torch.Tensor = IDS
) -> list[torch.Tensor]:
    """The output of blocks 0, 1, 2 of one forward pass under ``edits``."""
    found: dict[int, torch.Tensor] = {}
    readers = {site: lambda x, site=site: found.update({site: x.clone()}) for site in range(3)}
    with (
        stock_attention(loaded) as whole,
        steered(loaded.blocks, edits),
        torch.inference_mode(),
        tapped(loaded.blocks, readers),
    ):
        whole(input_ids=ids, use_cache=False)
    return [found[site] for site in range(3)]


def hooks(loaded: LoadedModel) -> int:
    return sum(len(block._forward_hooks) for block in loaded.blocks)


def test_an_edit_changes_its_site_as_stated_and_what_lies_behind(loaded: LoadedModel) -> None:
    plain = residuals(loaded, [])
    direction = unit(1)
    added = residuals(loaded, [Edit(site=1, direction=direction, add=-3.0)])
    torch.testing.assert_close(added[0], plain[0])
    torch.testing.assert_close(added[1], plain[1] - 3.0 * direction)
    assert not torch.allclose(added[2], plain[2] - 3.0 * direction, atol=1e-3)
    out = residuals(loaded, [Edit(site=1, direction=direction, project_out=True)])
    torch.testing.assert_close(
        out[1], plain[1] - (plain[1] @ direction)[..., None] * direction, atol=1e-5, rtol=1e-5
    )
    assert float((out[1] @ direction).abs().max()) < 1e-4


def test_edits_of_one_site_are_made_in_order(loaded: LoadedModel) -> None:
    direction = unit(1)
    add = Edit(site=0, direction=direction, add=5.0)
    out = Edit(site=0, direction=direction, project_out=True)
    assert float((residuals(loaded, [add, out])[0] @ direction).abs().max()) < 1e-4
    torch.testing.assert_close(
        residuals(loaded, [out, add])[0] @ direction, torch.full((1, 6), 5.0), atol=1e-4, rtol=0
    )


def test_first_tokens_are_spared_by_position_whatever_stands_before_them(
    loaded: LoadedModel,
) -> None:
    edit = Edit(site=1, direction=unit(2), add=4.0, first_position=2)
    plain, edited = residuals(loaded, []), residuals(loaded, [edit])
    torch.testing.assert_close(edited[1][:, :2], plain[1][:, :2])
    torch.testing.assert_close(edited[1][:, 2:], plain[1][:, 2:] + 4.0 * edit.direction)
    found: list[torch.Tensor] = []
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), IDS], dim=1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    with (
        stock_attention(loaded) as whole,
        steered(loaded.blocks, [edit]),
        torch.inference_mode(),
        tapped(loaded.blocks, {1: lambda x: found.append(x.clone())}),
    ):
        whole(
            input_ids=padded,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            use_cache=False,
        )
    torch.testing.assert_close(found[0][:, 3:], edited[1], atol=1e-4, rtol=1e-4)


def test_no_hook_survives_an_exception(loaded: LoadedModel) -> None:
    edits = [Edit(site=site, direction=unit(site), add=1.0) for site in range(3)]
    with pytest.raises(RuntimeError, match="halfway"), steered(loaded.blocks, edits):
        assert hooks(loaded) == 3
        raise RuntimeError("halfway")
    assert hooks(loaded) == 0
    good, deep = Edit(site=0, direction=unit(0)), Edit(site=4, direction=unit(0))
    refused = pytest.raises(BadInput, match="no site 4; sites of this model are 0 to")
    with refused, steered(loaded.blocks, [good, deep]):
        pass
    assert hooks(loaded) == 0


def test_gradients_pass_through_an_edit(loaded: LoadedModel) -> None:
    direction = unit(3)
    weight = loaded.blocks[0].ln_1.weight if hasattr(loaded.blocks[0], "ln_1") else None
    weight = loaded.blocks[0].input_layernorm.weight if weight is None else weight
    weight.requires_grad_(True)
    gradients = []
    try:
        for edits in ([], [Edit(site=1, direction=direction, add=6.0)]):
            with stock_attention(loaded) as whole, steered(loaded.blocks, edits):
                whole(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
            gradients.append(weight.grad.clone())
            weight.grad = None
    finally:
        weight.requires_grad_(False)
    assert all(float(g.norm()) > 0 for g in gradients)
    assert not torch.allclose(*gradients)


def test_an_edit_refuses_nonsense(loaded: LoadedModel) -> None:
    direction = unit(0)
    for wrong, match in [
        ({"direction": direction * 2}, "length one"),
        ({"direction": direction * float("nan")}, "finite"),
        ({"direction": direction[None]}, "vector"),
        ({"direction": direction, "add": float("inf")}, "finite number"),
        ({"direction": direction, "add": 1.0, "project_out": True}, "either add"),
    ]:
        with pytest.raises(BadInput, match=match):
            Edit(site=0, **wrong)
    with pytest.raises(ModelError, match="16 wide, the model 32"):
        residuals(loaded, [Edit(site=0, direction=unit(0, 16), add=1.0)])


def test_an_architecture_that_hides_positions_spares_no_token() -> None:
    edit = Edit(site=0, direction=unit(0), add=1.0, first_position=1)
    with pytest.raises(ModelError, match="positions"):
        edit.applied(torch.zeros(1, 2, 32), None)
