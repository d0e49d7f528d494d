"""A server on this machine that serves a tiny model as an OpenAI-compatible endpoint; the model may be swapped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.scenes.endpoint import Reply, Server, serving


class Served:
    """Answers greedily with the model of a folder, by transformers alone."""

    def __init__(self) -> None:
        self.log_probs = True
        """Whether it tells them; a request for them is refused otherwise."""
        self.system = ""
        """A system prompt of its own in front of every conversation."""
        self.failing: Reply | None = None
        """What it answers instead, while it is not None."""
        self._said: dict[str, dict[str, Any]] = {}

    def swap(self, folder: Path, dtype: str = "float32") -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.speak(AutoTokenizer.from_pretrained(folder), model.eval())

    def speak(self, tokenizer: Any, model: Any) -> None:
        """From now on this model answers, on the CPU."""
        self._tokenizer, self._model = tokenizer, model
        self._said.clear()

    def reply(self, body: dict[str, Any]) -> Reply:
        if self.failing is not None:
            return self.failing
        if body.get("logprobs") and not self.log_probs:
            return 400, {}, b'{"error": {"message": "logprobs is not supported"}}'
        key = json.dumps(body["messages"]) + self.system
        if key not in self._said:
            self._said[key] = self._answered(body["messages"], body["max_tokens"])
        found = self._said[key]
        choice = {name: found[name] for name in ("message", "finish_reason")}
        if body.get("logprobs"):
            choice["logprobs"] = found["logprobs"]
        content = {"choices": [choice], "usage": found["usage"]}
        return 200, {}, json.dumps(content).encode()

    def _answered(self, messages: list[dict[str, Any]], most: int) -> dict[str, Any]:
        import torch

        system = [{"role": "system", "content": self.system}] if self.system else []
        text = self._tokenizer.apply_chat_template(
            [*system, *messages], tokenize=False, add_generation_prompt=True
        )
        asked = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        ids, told, finish = list(asked), [], "length"
        with torch.inference_mode():
            for _ in range(most):
                law = self._model(torch.tensor([ids])).logits[0, -1].float().log_softmax(dim=0)
                best = int(law.argmax())
                if best == self._tokenizer.eos_token_id:
                    finish = "stop"
                    break
                top = law.topk(5)
                told.append(
                    self._pair(best, law)
                    | {"top_logprobs": [self._pair(int(one), law) for one in top.indices]}
                )
                ids.append(best)
        said = ids[len(asked) :]
        return {
            "message": {"role": "assistant", "content": self._tokenizer.decode(said)},
            "finish_reason": finish,
            "logprobs": {"content": told},
            "usage": {"prompt_tokens": len(asked), "completion_tokens": len(said)},
        }

    def _pair(self, index: int, law: Any) -> dict[str, Any]:
        return {"token": self._tokenizer.decode([index]), "logprob": float(law[index])}


@contextmanager
def served(folder: Path) -> Iterator[tuple[Served, Server]]:
    """A server of the model in ``folder``, and the HTTP server in front of it."""
    one = Served()
    one.swap(folder)
    with serving(one.reply) as server:
        yield one, server
