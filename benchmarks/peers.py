"""The other ways to read a model's residual stream: transformers, nnsight, TransformerLens."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from monitor.replay.regions import Tokens
from monitor.values.features import Feature

PEER_BATCH, TUNED_TOKENS = 16, 2_048

Rows = Sequence[Tokens]
Way = Callable[[], np.ndarray]
"""Runs every prompt once and returns readings [n, k]."""


class Peers:
    """The other ways: all read hidden states [batch, tokens, d] and project and pool them alike."""

    def __init__(self, model: Any, tokenizer: Any, rows: Rows, features: list[Feature]) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.rows = rows
        self.site = features[0].site
        self.device = next(model.parameters()).device
        self.weight = torch.from_numpy(np.stack([f.weight for f in features], axis=1)).to(
            self.device
        )
        self.pad = tokenizer.pad_token_id or 0
        longest_first = sorted(range(len(rows)), key=lambda index: -len(rows[index].ids))
        self.one_by_one = [[index] for index in range(len(rows))]
        self.arrival = [
            list(range(start, min(start + PEER_BATCH, len(rows))))
            for start in range(0, len(rows), PEER_BATCH)
        ]
        self.sorted: list[list[int]] = []
        for index in longest_first:
            fits = self.sorted and len(rows[self.sorted[-1][0]].ids) * (len(self.sorted[-1]) + 1)
            if fits and fits <= TUNED_TOKENS:
                self.sorted[-1].append(index)
            else:
                self.sorted.append([index])

    def way(
        self, batches: list[list[int]], states: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> Way:
        def run() -> np.ndarray:
            readings = np.empty((len(self.rows), self.weight.shape[1]), dtype=np.float32)
            for batch in batches:
                width = max(len(self.rows[index].ids) for index in batch)
                ids = torch.full((len(batch), width), self.pad)
                mask = torch.zeros_like(ids)
                for line, index in enumerate(batch):
                    own = self.rows[index].ids
                    ids[line, : len(own)] = torch.tensor(own)
                    mask[line, : len(own)] = 1
                with torch.no_grad():
                    given = states(ids.to(self.device), mask.to(self.device))
                    projected = given.to(self.weight.dtype) @ self.weight
                for line, index in enumerate(batch):
                    positions = self.rows[index].positions("all", 1)
                    readings[index] = projected[line, positions].mean(dim=0).cpu().numpy()
            return readings

        return run

    def hidden_states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=None if len(ids) == 1 else mask,
            output_hidden_states=True,
            use_cache=False,
        )
        states: torch.Tensor = output.hidden_states[self.site + 1]
        return states

    def ways(self) -> dict[str, Way]:
        found = {
            "transformers, one by one": self.way(self.one_by_one, self.hidden_states),
            f"transformers, padded batches of {PEER_BATCH}": self.way(
                self.arrival, self.hidden_states
            ),
        }
        for name, states in (("nnsight", self._nnsight()), ("TransformerLens", self._lens())):
            if states is not None:
                found[f"{name}, batches of {PEER_BATCH}"] = self.way(self.arrival, states)
                found[f"{name}, tuned"] = self.way(self.sorted, states)
        return found

    def _nnsight(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
        if importlib.util.find_spec("nnsight") is None:
            return None
        from nnsight import NNsight

        wrapped = NNsight(self.model)

        def states(ids: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
            # Right padding needs no mask in a causal model, and is faster without.
            with wrapped.trace(input_ids=ids, use_cache=False) as tracer:
                output = wrapped.model.layers[self.site].output.save()
                tracer.stop()
            result: torch.Tensor = output[0] if isinstance(output, tuple) else output
            return result

        return states

    def _lens(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
        if importlib.util.find_spec("transformer_lens") is None:
            return None
        from transformer_lens.model_bridge import TransformerBridge

        path = self.model.config._name_or_path
        # A copy of its own: the bridge replaces parts of the model it is given.
        own: Any = AutoModelForCausalLM.from_pretrained(path, dtype=self.model.dtype)
        bridge = TransformerBridge.boot_transformers(
            path, hf_model=own, tokenizer=self.tokenizer, device=str(self.device)
        )
        name = f"blocks.{self.site}.hook_out"

        def states(ids: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
            _, cache = bridge.run_with_cache(
                ids, names_filter=lambda hook: hook == name, stop_at_layer=self.site + 1
            )
            result: torch.Tensor = cache[name]
            return result

        return states
