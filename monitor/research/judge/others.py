"""What other models answer to the held-out questions: benign text that no author of the pack wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from monitor.errors import BadInput
from monitor.research.answers.generate import answered
from monitor.research.hard_texts import HardTexts
from monitor.research.progress import Progress
from monitor.research.reading import load_whole
from monitor.research.texts import Texts, answer_prompts
from monitor.settings import ReplaySettings
from monitor.values.prompts import Prompt

QUESTIONS: Final = 96
QUICK_QUESTIONS: Final = 24
TOKENS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A model called ``name``: its ``answers``, and the ``good`` ones to the same questions, in order."""

    name: str
    answers: tuple[Prompt, ...]
    good: tuple[Prompt, ...]


def answered_by(
    models: Sequence[Path],
    texts: Texts,
    hard: HardTexts,
    device: str,
    quick: bool,
    progress: Progress,
) -> tuple[Answered, ...]:
    """The greedy answers of each of ``models`` to held-out questions, of at most `TOKENS` tokens.

    The questions are the held-out ones of ``texts`` and, evenly spaced, of the judged calm pairs. A question
    that a model leaves without an answer is left out for it. Loads one model at a time; blocks for
    minutes. Raises `BadInput` when two models have one name or a model answers nothing, `ModelError`.
    """
    asked = [*answer_prompts(texts.held_out, None), *(row.good_prompt for row in hard.judged_calm)]
    most = QUICK_QUESTIONS if quick else QUESTIONS
    asked = asked[:: -(-len(asked) // most)]
    found: list[Answered] = []
    for path in models:
        progress(f"answers by {path.name}")
        loaded = load_whole(ReplaySettings(model=path, device=device, dtype="float32"))
        given = answered(loaded, asked, TOKENS, progress)
        pairs = [(one, good) for one, good in zip(given, asked, strict=True) if one.response]
        name = loaded.model_id
        if not pairs:
            raise BadInput(f"--other-model {path}: {name} answers none of {len(asked)} questions")
        if any(one.name == name for one in found):
            raise BadInput(
                f"--other-model {path}: two of the models are called {name}; give each once"
            )
        answers, good = zip(*pairs, strict=True)
        found.append(Answered(name=name, answers=answers, good=good))
    return tuple(found)
