"""Inside vLLM's worker: served answers are held against the model's own law while their prompts are read.

The states before the LM head become logits here, some tokens at a time, and each piece of logits is reduced by the
same `Reader` as in our own copy; none is kept. Of an answer some twenty numbers leave the process. A prompt that is
begun again goes on where its answer was left.

Does not import vLLM.

Legend: t = tokens of one forward pass, d = model width, v = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from monitor.backends.vllm import wire
from monitor.backends.vllm.batch import Piece, ids_of, marks_of, pieces
from monitor.replay.forward import is_out_of_memory
from monitor.replay.passes import PIECE
from monitor.replay.surprise import Reader, reader_for
from monitor.values.surprise import NotWeighed, Weighed


@dataclass(slots=True)
class _Answer:
    """One under way: a reader for each law that it is weighed by, and the place whose logits come next."""

    name: str
    readers: list[Reader]
    next: int
    stop: int
    failed: bool = False

    @property
    def result(self) -> list[Weighed]:
        if self.failed:
            return [NotWeighed.OUT_OF_MEMORY for _ in self.readers]
        return [reader.result() for reader in self.readers]


@dataclass(slots=True)
class Weighing:
    """Weighs the answers that have laws among the rows of ``runner``, vLLM's model runner."""

    runner: Any
    model: Any
    """It makes logits [t, v] of the states [t, d] that its forward pass gives."""
    rows: dict[str, _Answer] = field(default_factory=dict)
    """By request."""
    done: dict[str, list[Weighed]] = field(default_factory=dict)
    """By the row's own name, until they are taken."""

    def read(self, output: object) -> None:
        """What the whole model's forward pass gives: states behind the final norm."""
        if not isinstance(output, torch.Tensor):
            return
        for piece in pieces(self.runner, len(output)):
            if (answer := self._answer(piece)) is not None:
                self._take(answer, piece, output)
                if answer.next == answer.stop:
                    self.done[answer.name] = answer.result
                    del self.rows[piece.request]

    def forget(self, names: Sequence[str]) -> None:
        """Rows that nobody waits for any more."""
        gone = set(names)
        self.rows = {key: one for key, one in self.rows.items() if one.name not in gone}
        for name in gone & self.done.keys():
            del self.done[name]

    def _answer(self, piece: Piece) -> _Answer | None:
        """The answer behind ``piece``; None where nobody asks for it."""
        ids, marks = ids_of(self.runner, piece.request), marks_of(self.runner, piece.request)
        if not marks or not marks.get("laws") or piece.place >= len(ids):
            return None  # behind the prompt stands what the engine says itself
        if piece.request not in self.rows:
            asked = wire.asked_of(ids, marks)
            self.rows[piece.request] = _Answer(
                marks["name"],
                [reader_for(asked.tokens, law, asked.ends) for law in asked.laws],
                # The token before an answer is where its first token was drawn.
                asked.tokens.prompt_tokens - 1,
                len(ids),
            )
        return self.rows[piece.request]

    def _take(self, answer: _Answer, piece: Piece, states: torch.Tensor) -> None:
        """Nothing of a piece that was taken before, or before which tokens lack."""
        stop = min(piece.end, answer.stop)
        while piece.place <= answer.next < stop:
            some = min(PIECE, stop - answer.next)
            begin = piece.start + answer.next - piece.place
            logits = self.model.compute_logits(states[begin : begin + some])
            if logits is None:
                return  # of several workers one has them
            if not answer.failed:
                answer.failed = not _fits(answer.readers, logits)
            answer.next += some


def _fits(readers: Sequence[Reader], logits: torch.Tensor) -> bool:
    """Let them take the logits; False when memory does not suffice, which must not end the engine."""
    try:
        for reader in readers:
            reader.take(logits)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    else:
        return True
    # Outside the handler, where the traceback no longer holds the tensors.
    if logits.device.type == "cuda":
        torch.cuda.empty_cache()
    return False
