from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from monitor.demo.chat_model import chat_model, gguf_file


def test_the_wheel_is_found_without_importing_it() -> None:
    with gguf_file().open("rb") as file:
        assert file.read(4) == b"GGUF"


@pytest.mark.model
def test_the_converted_model_answers(chat_model_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chat_model_path)
    model = AutoModelForCausalLM.from_pretrained(chat_model_path, dtype=torch.float32)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answered = model.generate(**asked, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answered[0, asked["input_ids"].shape[1] :])


def _convert(cache: str, told: multiprocessing.Queue[str]) -> None:
    told.put(f"path {chat_model(Path(cache), progress=told.put)}")


@pytest.mark.slow
@pytest.mark.model
def test_two_processes_convert_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    told: multiprocessing.Queue[str] = spawn.Queue()
    processes = [spawn.Process(target=_convert, args=(str(tmp_path), told)) for _ in range(2)]
    for process in processes:
        process.start()
    lines = [told.get(timeout=240) for _ in range(5)]
    for process in processes:
        process.join()
    assert sum(line.startswith("converting") for line in lines) == 1
    assert sum(line.startswith("waiting") for line in lines) == 1
    assert len({line for line in lines if line.startswith("path")}) == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and path.name[0] == "."] == []
