"""What stands in one forward pass of vLLM's model runner: pieces of prompts, in no order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

MARKS: Final = "persona_monitor"
"""Key of a request's ``extra_args`` under which the row's name, its marks and its laws stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Part of a prompt in one forward pass: tokens ``start`` to ``stop`` of it stand at ``place`` and on."""

    request: str
    start: int
    stop: int
    place: int

    @property
    def end(self) -> int:
        """The place behind its last token."""
        return self.place + self.stop - self.start


def pieces(runner: Any, tokens: int) -> Iterator[Piece]:
    """The pieces of a pass of ``tokens`` that are ours to read."""
    batch = runner.input_batch
    starts = runner.query_start_loc.np
    for index, request in enumerate(batch.req_ids[: batch.num_reqs]):
        start, stop = int(starts[index]), int(starts[index + 1])
        if stop > tokens or marks_of(runner, request) is None:
            continue
        place = int(batch.num_computed_tokens_cpu[index])
        yield Piece(request=request, start=start, stop=stop, place=place)


def marks_of(runner: Any, request: str) -> dict[str, Any] | None:
    """What stands under `MARKS`; None of a request that is somebody else's or gone."""
    state = runner.requests.get(request)
    params = getattr(state, "sampling_params", None)
    found: dict[str, Any] | None = (getattr(params, "extra_args", None) or {}).get(MARKS)
    return found


def ids_of(runner: Any, request: str) -> Sequence[int]:
    found: Sequence[int] = runner.requests[request].prompt_token_ids
    return found
