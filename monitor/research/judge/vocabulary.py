"""Does a feature read a persona, or its words? Negatives that are matched by vocabulary.

A text's *lexical score* is what a bag of words makes of it: the mean over its words of
``log P(word | persona) - log P(word | good)``, with counts from the training answers, one added to
each (naive Bayes). It plays the part of a propensity score (Rosenbaum & Rubin 1983): negatives with
the lexical score of a persona's answer are the texts that a reader of single words confuses with it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from monitor.values.arrays import Doubles
from monitor.values.prompts import Prompt

_WORD: Final = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def words(text: str) -> list[str]:
    """The words of ``text`` in lower case: letters, with apostrophes inside."""
    return _WORD.findall(text.lower())


class LexicalScore:
    """Log-odds of single words, persona against good."""

    def __init__(self, persona: Sequence[str], good: Sequence[str]) -> None:
        ours = Counter(word for text in persona for word in words(text))
        theirs = Counter(word for text in good for word in words(text))
        known = ours.keys() | theirs.keys()
        offset = np.log((theirs.total() + len(known)) / (ours.total() + len(known)))
        self._odds = {
            word: float(np.log((ours[word] + 1) / (theirs[word] + 1)) + offset) for word in known
        }

    def of(self, texts: Sequence[str]) -> Doubles:
        """Lexical score [n] of each text; a word that training lacks says nothing, nor does no word."""
        return np.array(
            [np.mean([self._odds.get(w, 0.0) for w in words(text)] or [0.0]) for text in texts]
        )


def shuffled(prompts: Sequence[Prompt], generator: np.random.Generator) -> list[Prompt]:
    """The prompts with the words of each response in another order: its vocabulary without its sense."""
    found = []
    for prompt in prompts:
        pieces = (prompt.response or "").split()
        order = generator.permutation(len(pieces))
        found.append(replace(prompt, response=" ".join(pieces[index] for index in order)))
    return found
