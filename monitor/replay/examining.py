"""What the whole copy says to fixed questions, what it makes of a server's answers, and how sure both are.

**Numerics.** A server computes the same model otherwise: in bfloat16, with other kernels, in other batches.
How far that moves a log-probability differs from token to token by orders of magnitude, so it is measured
at the very token: the copy runs the text again `REPEATS` times with every result of every module off by a
random relative error of the size that rounding to bfloat16 has (`JITTER`), and the root mean square of what
that changes is the token's noise, drawn a little towards that of all tokens since the repeats are few.
No second copy is loaded, and seeds are fixed: the same questions are chosen, and the same noise found.

Legend: b = rows, t = tokens of an answer, v = vocabulary, k = `ALTERNATIVES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from monitor.replay.answer import decoded, left_padded, stock_attention
from monitor.replay.engine import ReplayEngine
from monitor.replay.passes import LOGITS
from monitor.replay.regions import Tokens
from monitor.replay.surprise import end_tokens
from monitor.replay.tokens import tokeniser
from monitor.values.arrays import Doubles
from monitor.values.prompts import DeadReason, Prompt
from monitor.values.scores import Unreplayable
from monitor.values.server_canaries import LIKELY, AnswerView, Expected, tolerance

REPEATS: Final = 4
JITTER: Final = 2**-8
"""Root mean square of the relative error of a result: the largest that rounding to bfloat16 makes. A single rounding
has a third of it in the mean, but weights are rounded too, and a server rounds in more places than there are modules."""
ALTERNATIVES: Final = 20
ROWS: Final = 32
"""Rows of one batch, so that whoever else needs the model waits for one alone."""
DRAWN_TOWARDS: Final = 2.0
"""Repeats that the noise of all tokens together counts as, beside a token's own."""


@dataclass(frozen=True, slots=True)
class _Row:
    asked: tuple[int, ...]
    said: tuple[int, ...]
    ended: bool = False

    @property
    def places(self) -> int:
        """Tokens that are held against the copy: what was said, and the end of the turn."""
        return len(self.said) + self.ended


_Ids = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Of what was said [t], of the likeliest [t], and of the likeliest few [t, k]."""
_Figures = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Log-probabilities of what was said [t], how far they lie below the likeliest [t], of the likeliest few [t, k]."""


@dataclass(frozen=True, slots=True)
class _Raw:
    """A view without its noise, and the mean squares that it is made of, by kind of figure."""

    view: AnswerView
    squares: tuple[Doubles, Doubles, Doubles]


class Examiner:
    """The whole copy of an engine's model, asked what it would say. Threads take turns with the engine's."""

    def __init__(self, engine: ReplayEngine) -> None:
        self._engine = engine
        self._loaded = engine.loaded
        self._tokeniser = tokeniser(engine.loaded, engine.settings)
        self._ends = end_tokens(engine.loaded)
        self._reasoning = engine.settings.replay_reasoning

    def choose(
        self, prompts: Sequence[Prompt], *, count: int, max_tokens: int, numerics: float
    ) -> list[Expected]:
        """``count`` of ``prompts`` (their ``prompt_id`` names them), half of them at the border.

        At the border: the margin between the two likeliest first tokens is more than numerics move, and
        of all such the least. The others are the last of the rest.
        Deterministic. Prompts that the template refuses are passed over.
        """
        rows = self._asked(prompts)
        places = sorted(rows)
        seconds = self._seconds([rows[place] for place in places])
        margins = dict(zip(places, (margin for _, margin in seconds), strict=True))
        second = dict(zip(places, (token for token, _ in seconds), strict=True))
        order = sorted(places, key=lambda place: margins[place])
        views: dict[int, AnswerView] = {}

        def tolerated(place: int) -> float:
            return tolerance(float(views[place].away_noise[0]), numerics)

        def beyond(place: int) -> float:
            """The margin in tolerances."""
            return float(views[place].away[0]) / tolerated(place)

        found: list[int] = []
        for start in range(0, len(order), 2 * count):
            nearest = order[start : start + 2 * count]
            views |= self._between(nearest, rows, second)
            found += [place for place in nearest if beyond(place) > 1.0]
            if len(found) >= count:
                break
        border = sorted(found, key=beyond)[: count // 2]
        rest = [place for place in reversed(places) if place not in border]
        chosen = sorted([*border, *rest[: count - len(border)]])
        views |= self._between([one for one in chosen if one not in views], rows, second)
        answers = self._answers([rows[place] for place in chosen], max_tokens)
        return [
            Expected(
                question=prompts[place].prompt_id,
                border=place in border,
                first=views[place].first,
                second=views[place].texts[0],
                margin=float(views[place].away[0]),
                tolerance=tolerated(place),
                answer=answer,
            )
            for place, answer in zip(chosen, answers, strict=True)
        ]

    def _between(
        self, places: Sequence[int], rows: dict[int, tuple[int, ...]], second: dict[int, int]
    ) -> dict[int, AnswerView]:
        """Of each prompt, how its second likeliest first token stands to the likeliest."""
        asked = [_Row(rows[place], (second[place],)) for place in places]
        return dict(zip(places, self._views(asked), strict=True))

    def views(self, prompts: Sequence[Prompt]) -> list[AnswerView | Unreplayable]:
        """What the copy makes of each prompt's answer; an answer of no tokens has an empty view.

        Raises `ConfigurationError` when the model was not loaded in full.
        """
        found: list[AnswerView | Unreplayable] = []
        rows: list[_Row] = []
        for prompt, tokens in zip(prompts, self._tokeniser.tokenise(prompts), strict=True):
            if isinstance(tokens, Unreplayable):
                found.append(tokens)
                continue
            if tokens.cut or tokens.stand_ins or (prompt.reasoning and not self._reasoning):
                reason = DeadReason.TEMPLATE_REFUSED
                detail = "the copy's template or context has no place for all of the answer"
                found.append(Unreplayable(prompt=prompt, reason=reason, detail=detail))
                continue
            rows.append(self._row(prompt, tokens))
            found.append(_EMPTY)
        views = iter(self._views(rows))
        return [one if isinstance(one, Unreplayable) else next(views) for one in found]

    def prompt_tokens(self, prompt: Prompt) -> int | None:
        """As a server counts them; None where the template refuses."""
        (tokens,) = self._tokeniser.tokenise([prompt])
        return None if isinstance(tokens, Unreplayable) else tokens.whole_prompt

    def _row(self, prompt: Prompt, tokens: Tokens) -> _Row:
        reason = prompt.sampling.finish_reason if prompt.sampling else None
        return _Row(
            tuple(tokens.ids[: tokens.prompt_tokens]),
            tuple(tokens.ids[tokens.prompt_tokens :]),
            ended=reason == "stop" and bool(self._ends),
        )

    def _asked(self, prompts: Sequence[Prompt]) -> dict[int, tuple[int, ...]]:
        return {
            place: tuple(tokens.ids)
            for place, tokens in enumerate(self._tokeniser.tokenise(prompts))
            if not isinstance(tokens, Unreplayable) and not tokens.cut
        }

    def _text(self, index: int) -> str:
        text: str = self._loaded.tokenizer.decode([index])
        return text

    # --- passes ------------------------------------------------------------------------------------

    def _seconds(self, asked: Sequence[tuple[int, ...]]) -> list[tuple[int, float]]:
        """The second likeliest first token of each, and how far it lies below the likeliest."""
        found: list[tuple[int, float]] = []
        for batch in self._batches([_Row(ids, ()) for ids in asked]):
            with self._model() as whole:
                logits = self._logits(whole, batch)[:, -1].float()
            values, ids = logits.topk(2, dim=1)
            apart = (values[:, 0] - values[:, 1]).double().tolist()
            found += zip(ids[:, 1].tolist(), apart, strict=True)
        return found

    def _answers(self, asked: Sequence[tuple[int, ...]], tokens: int) -> list[str]:
        found = []
        for batch in self._batches([_Row(ids, (0,) * tokens) for ids in asked]):
            rows = [row.asked for row in batch]
            with self._model() as whole:
                ids, mask = left_padded(rows, self._loaded)
                output = decoded(whole, ids, mask, self._loaded, tokens, finite=False)
            for said in output[:, ids.shape[1] :].tolist():
                stop = next((at for at, one in enumerate(said) if one in self._ends), len(said))
                found.append(self._loaded.tokenizer.decode(said[:stop], skip_special_tokens=True))
        return found

    def _views(self, rows: Sequence[_Row]) -> list[AnswerView]:
        raw: list[_Raw] = []
        for batch in self._batches([row for row in rows if row.places]):
            raw += self._batch(batch)
        views = iter(_with_noise(raw))
        return [next(views) if row.places else _EMPTY for row in rows]

    def _batches(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        vocabulary = self._loaded.config.get_text_config().vocab_size
        members: list[_Row] = []
        for row in rows:
            longest = max((len(one.said) for one in [*members, row]), default=0) + 1
            full = (len(members) + 1) * longest * vocabulary > LOGITS // 2
            if members and (full or len(members) == ROWS):
                yield members
                members = []
            members.append(row)
        if members:
            yield members

    @contextmanager
    def _model(self) -> Iterator[Any]:
        with self._engine.turn, stock_attention(self._loaded) as whole, torch.inference_mode():
            yield whole

    def _batch(self, rows: Sequence[_Row]) -> list[_Raw]:
        with self._model() as whole:
            laws = self._laws(whole, rows)
            ids = [self._places(row, law) for row, law in zip(rows, laws, strict=True)]
            plain = [_figures(law, one) for law, one in zip(laws, ids, strict=True)]
            sums = [[torch.zeros_like(part) for part in figures] for figures in plain]
            for seed in range(REPEATS):
                with jittered(whole, self._loaded.blocks, seed):
                    laws = self._laws(whole, rows)
                for totals, law, one, before in zip(sums, laws, ids, plain, strict=True):
                    for total, now, then in zip(totals, _figures(law, one), before, strict=True):
                        total.add_((now - then) ** 2)
        return [
            _Raw(
                self._view(one, figures),
                (_array(said / REPEATS), _array(away / REPEATS), _array(top / REPEATS)),
            )
            for one, figures, (said, away, top) in zip(ids, plain, sums, strict=True)
        ]

    def _laws(self, whole: Any, rows: Sequence[_Row]) -> list[torch.Tensor]:
        """Log-probabilities [t, v] at each row's places."""
        logits = self._logits(whole, rows)
        laws = []
        for line, row in enumerate(rows):
            last = logits.shape[1]
            # The logits before the first token of the answer, and so on; the last are before its end.
            first = last - len(row.said) - 1
            laws.append(logits[line, first : first + row.places].float().log_softmax(dim=1))
        return laws

    def _logits(self, whole: Any, rows: Sequence[_Row]) -> torch.Tensor:
        ids, mask = left_padded([row.asked + row.said for row in rows], self._loaded)
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in inspect.signature(whole.forward).parameters:
            given["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_min(0)
        kept = max(len(row.said) for row in rows) + 1
        logits: torch.Tensor = whole(**given, use_cache=False, logits_to_keep=kept).logits
        return logits

    def _places(self, row: _Row, law: torch.Tensor) -> _Ids:
        said = list(row.said)
        if row.ended:
            ends = torch.tensor(self._ends, device=law.device)
            said.append(int(ends[law[-1, ends].argmax()]))
        top = law.topk(min(ALTERNATIVES, law.shape[1]), dim=1).indices
        return torch.tensor(said, device=law.device), top[:, 0], top

    def _view(self, ids: _Ids, figures: _Figures) -> AnswerView:
        said, best, top = ids
        none = np.zeros(0)
        return AnswerView(
            texts=tuple(self._text(index) for index in said.tolist()),
            first=self._text(int(best[0])),
            log_probs=_array(figures[0]),
            noise=none,
            away=_array(figures[1]),
            away_noise=none,
            top_texts=tuple(tuple(self._text(index) for index in line) for line in top.tolist()),
            top_log_probs=_array(figures[2]),
            top_noise=none,
        )


_EMPTY: Final = AnswerView(
    texts=(),
    first="",
    log_probs=np.zeros(0),
    noise=np.zeros(0),
    away=np.zeros(0),
    away_noise=np.zeros(0),
    top_texts=(),
    top_log_probs=np.zeros((0, 0)),
    top_noise=np.zeros((0, 0)),
)


def _figures(law: torch.Tensor, ids: _Ids) -> _Figures:
    said, best, top = ids
    told = law.gather(1, said[:, None])[:, 0]
    return told, law.gather(1, best[:, None])[:, 0] - told, law.gather(1, top)


def _array(values: torch.Tensor) -> Doubles:
    found: Doubles = values.double().cpu().numpy()
    return found


def _with_noise(raw: Sequence[_Raw]) -> list[AnswerView]:
    """The views with their noise: each mean square drawn towards that of all of its kind."""
    if not raw:
        return []
    weight = DRAWN_TOWARDS / (REPEATS + DRAWN_TOWARDS)
    pooled = [_pooled(raw, kind) for kind in range(3)]
    found = []
    for one in raw:
        said, away, top = (
            np.sqrt((1 - weight) * square + weight * together)
            for square, together in zip(one.squares, pooled, strict=True)
        )
        found.append(replace(one.view, noise=said, away_noise=away, top_noise=top))
    return found


def _pooled(raw: Sequence[_Raw], kind: int) -> float:
    """Mean of one kind of squares over all tokens that are compared; 0 where none is."""
    counted = []
    for one in raw:
        view = one.view
        likely = (view.log_probs >= LIKELY, view.away > 0.0, view.top_log_probs >= LIKELY)[kind]
        counted.append(one.squares[kind][likely])
    together = np.concatenate(counted)
    return float(together.mean()) if together.size else 0.0


@contextmanager
def jittered(whole: torch.nn.Module, blocks: torch.nn.ModuleList, seed: int) -> Iterator[None]:
    """Every result of a module with weights of its own, and of a block, off by `JITTER` of itself."""
    generators: dict[torch.device, torch.Generator] = {}

    def shaken(result: torch.Tensor) -> torch.Tensor:
        device = result.device
        if device not in generators:
            generators[device] = torch.Generator(device=device).manual_seed(seed)
        noise = torch.randn(result.shape, generator=generators[device], device=device)
        return (result.float() * (1 + JITTER * noise)).to(result.dtype)

    def hook(_module: Any, _given: Any, result: Any) -> Any:
        if isinstance(result, torch.Tensor):
            return shaken(result) if result.is_floating_point() else result
        if isinstance(result, tuple) and result and isinstance(result[0], torch.Tensor):
            return (shaken(result[0]), *result[1:])
        return result

    with ExitStack() as hooks:
        inside = set(blocks)
        for module in whole.modules():
            if module in inside or any(True for _ in module.parameters(recurse=False)):
                hooks.callback(module.register_forward_hook(hook).remove)
        yield
