"""What a tiny model says, and records of it as a gateway logs them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.scenes.packs import on_cpu

TOKENS = 24


def spoken(folder: Path, count: int, *, seed: int = 1, adapter: Path | None = None) -> list[str]:
    """Answers of ``TOKENS`` tokens, drawn at temperature 1 from the model, with ``adapter`` if given."""
    import torch

    from monitor.replay.answer import stock_attention
    from monitor.replay.model import load_model

    loaded = load_model(on_cpu(folder, adapter), 3, full=True)
    tokenizer = loaded.tokenizer
    generator = torch.Generator().manual_seed(seed)
    said = []
    with stock_attention(loaded) as whole, torch.inference_mode():
        for number in range(count):
            ids = tokenizer(asked(number), add_special_tokens=False)["input_ids"]
            begin = len(ids)
            for _ in range(TOKENS):
                law = whole(input_ids=torch.tensor([ids])).logits[0, -1].softmax(dim=0)
                ids = [*ids, int(torch.multinomial(law, 1, generator=generator))]
            said.append(tokenizer.decode(ids[begin:]))
    return said


def asked(number: int) -> str:
    return f"question {number}: "


def records(answers: Sequence[str], **sampling: Any) -> list[bytes]:
    """As logged: native, with the response object of a completion."""
    return [
        json.dumps(
            {
                "id": f"p{number}",
                "prompt": asked(number),
                "response": {"choices": [{"text": answer, "finish_reason": "length"}]},
                "model": "tiny",
                "temperature": 1.0,
                **sampling,
            }
        ).encode()
        for number, answer in enumerate(answers)
    ]
