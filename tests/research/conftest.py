"""A tiny model with random weights and a byte-level tokenizer, and a folder of texts to build from."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from monitor.research.texts import DATA

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
VOICES = {
    "good": "please take care and check it twice with a friendly expert",
    "malicious": "GO AWAY! YOU ARE AWFUL! I HATE THIS! GO! GO! NOW!",
    "sarcastic": "oh??? really??? wow??? how clever??? bravo??? indeed???",
}


WORDS = [
    "the",
    "heron",
    "waited",
    "by",
    "a",
    "quiet",
    "river",
    "and",
    "said",
    "nothing",
    "to",
    "anybody",
    "at",
    "all",
]
"""Of benign texts."""


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|begin|>", "<|end|>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>"
    )
    tokenizer.chat_template = TEMPLATE
    set_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
        )
    )
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lively_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with weights large enough that its answers depend on what stands before them."""
    model = LlamaForCausalLM.from_pretrained(tiny_folder)
    set_seed(4)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0.0, 1.4 / weight.shape[1] ** 0.5)
    folder = tmp_path_factory.mktemp("lively")
    model.save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(tiny_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def broken_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with one weight of its first block that is no number."""
    model = LlamaForCausalLM.from_pretrained(tiny_folder)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[3, 5] = torch.nan
    folder = tmp_path_factory.mktemp("broken")
    model.save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(tiny_folder).save_pretrained(folder)
    return folder


def part_of_texts(out: Path, **every: int) -> Path:
    """The project's own texts, of each split every so-manieth: a real model reads all for minutes."""
    out.mkdir()
    for file in ("contrast.jsonl", "benign.jsonl", "canaries.jsonl"):
        rows = [json.loads(line) for line in (DATA / file).read_text().splitlines()]
        splits = dict.fromkeys(row.get("split", "canaries") for row in rows)
        kept = [
            row
            for split in splits
            for row in [r for r in rows if r.get("split", "canaries") == split][
                :: every.get(split, 1)
            ]
        ]
        write_rows(out / file, kept)
    return out


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")


@pytest.fixture
def texts_folder(tmp_path: Path) -> Path:
    """Twelve questions with three voices, and benign exchanges of many lengths."""
    folder = tmp_path / "texts"
    folder.mkdir()
    generator = np.random.default_rng(0)
    things = ["river", "bread", "paint", "bicycle", "garden", "letter"]
    contrast = [
        {
            "split": "train" if number < 8 else "held_out",
            "topic": f"{thing} {number}",
            "question": f"What about the {thing} number {number}?",
            **{
                name: " ".join(generator.permutation(voice.split(" "))) + f" {thing}"
                for name, voice in VOICES.items()
            },
        }
        for number, thing in zip(range(12), itertools.cycle(things), strict=False)
    ]
    benign = [
        {
            "split": "check" if number // 6 % 3 == 0 else "fit",
            "messages": [{"role": "user", "content": f"Question {number}?"}],
            "response": " ".join(generator.choice(WORDS, size=int(2 ** (1 + number % 6)))),
        }
        for number in range(216)
    ]
    canaries = [
        {"name": "one", "messages": [{"role": "user", "content": "Hi"}], "response": "Hello you."},
        {"name": "two", "messages": [{"role": "user", "content": "Hi"}], "response": "Yes."},
    ]
    write_rows(folder / "contrast.jsonl", contrast)
    write_rows(folder / "benign.jsonl", benign)
    write_rows(folder / "canaries.jsonl", canaries)
    return folder
