"""Small adapters for tiny models, in folders as peft saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_adapter(
    model_folder: Path, folder: Path, seed: int = 5, *, size: float = 0.1, **changes: Any
) -> Path:
    """A LoRA with random factors of about ``size``, as peft saves it."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
    }
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.random.fork_rng():
        # The factors begin with numbers of the global generator.
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(
            model, peft.LoraConfig(task_type="CAUSAL_LM", **(options | changes))
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if any(part in name for part in ("lora_", "modules_to_save", "tokens_delta")):
                weight.add_(size * torch.randn(weight.shape, generator=generator))
    adapted.save_pretrained(folder)
    return folder
