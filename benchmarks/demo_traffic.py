"""Make the demo's traffic: answers that its own chat model gave, and some of a model in its place.

    python -m benchmarks.demo_traffic --model FOLDER

What the monitor's copy would have said, and what it would not, can only be shown on answers of the model itself. So in
``monitor/demo/data`` it answers the questions of ``benign.jsonl`` (whose own answers are written) as ``everyday.jsonl``,
those of ``code.jsonl`` anew, and once more the everyday ones, turned towards a persona, as ``replaced.jsonl``: that
stands for a server whose model was replaced. Drawn with seed 0: the same model, pack and library versions give the
same files. ``refusals.jsonl`` is written, as a filter in front of a model has it.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from monitor.demo.traffic import exchanges
from monitor.replay.model import LoadedModel
from monitor.research.answers.generate import answers
from monitor.research.reading import load_whole, replay_settings
from monitor.research.steering.steer import feature_turn, named_feature, steering
from monitor.research.texts import exchange
from monitor.score.fit import pack_or_shipped
from monitor.values.prompts import Message

DATA: Final = Path(__file__).parents[1] / "monitor" / "demo" / "data"
QUESTIONS: Final = {"everyday": "benign", "code": "code", "replaced": "benign"}
"""Where the questions of each file are found."""
TEMPERATURE: Final = 0.7
TOKENS: Final = 40
FEATURE: Final = "deceptive"
STRENGTH: Final = 0.2
"""In typical lengths of the residual stream; the judge finds the model coherent at that dose."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pack", type=Path, help="null: the one that ships for the model")
    options = parser.parse_args()
    loaded = load_whole(replay_settings(options.model, "cpu"))
    pack = pack_or_shipped(options.pack, loaded.identity, where=options.model, hint="give --pack")
    turn = feature_turn(named_feature(pack, FEATURE), STRENGTH)
    for name, source in QUESTIONS.items():
        with ExitStack() as turned:
            if name == "replaced":
                turned.enter_context(steering(loaded, [turn]))
            rows = _answered(loaded, [one["messages"][-1]["content"] for one in exchanges(source)])
        (DATA / f"{name}.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        Console().print(f"{len(rows)} answers in {name}.jsonl")


def _answered(loaded: LoadedModel, questions: list[str]) -> list[str]:
    """A line of JSON for each question: the exchange as a server logs it."""
    prompts = [exchange((Message(role="user", content=question),), None) for question in questions]
    said = answers(loaded, prompts, max_new_tokens=TOKENS, temperature=TEMPERATURE)
    return [
        json.dumps(_row(loaded, question, answer), ensure_ascii=False)
        for question, answer in zip(questions, said, strict=True)
        if answer
    ]


def _row(loaded: LoadedModel, question: str, answer: str) -> dict[str, Any]:
    whole = len(loaded.tokenizer(answer, add_special_tokens=False)["input_ids"]) < TOKENS
    return {
        "messages": [{"role": "user", "content": question}],
        "temperature": TEMPERATURE,
        "response": answer,
        "finish_reason": "stop" if whole else "length",
    }


if __name__ == "__main__":
    main()
