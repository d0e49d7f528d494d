"""Other models that may be the one that speaks: how likely each finds the answers that the copy has weighed.

An alternative is the copy with an adapter beside its weights, the copy steered along a feature, or another whole
model. The first two share the copy's weights and hold next to nothing of their own.

Legend: t = tokens of an answer, v = vocabulary, c = caps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from monitor.errors import ConfigurationError, ModelError
from monitor.replay.adapter import Beside, beside
from monitor.replay.answer import stock_attention
from monitor.replay.model import LoadedModel, load_model
from monitor.replay.passes import read_all, spoken
from monitor.replay.regions import Tokens
from monitor.replay.residuals import typical_lengths
from monitor.replay.sampler import is_greedy
from monitor.replay.surprise import (
    Reader,
    centred,
    end_share,
    end_tokens,
    law_of,
    may_have_ended,
    outcomes,
    read,
)
from monitor.replay.taps import Edit, push, steered
from monitor.settings import AlternativeSettings, ReplaySettings
from monitor.values.features import Feature
from monitor.values.likelihood import DrawnBy
from monitor.values.likeness import CAPS, Likened
from monitor.values.prompts import Prompt
from monitor.values.surprise import (
    GIVEN_AWAY,
    GREEDY_SLIP,
    OTHER_TOKENS,
    Surprise,
    Weighed,
)


class Alternative(Protocol):
    """A model that may be the one that speaks."""

    @property
    def name(self) -> str: ...

    @property
    def bytes(self) -> int:
        """What it takes in memory beside the copy."""
        ...

    def speaking(self, loaded: LoadedModel) -> AbstractContextManager[PreTrainedModel]:
        """Within the context, the alternative with stock attention; the copy ``loaded`` is not to be run."""
        ...


@dataclass(frozen=True, slots=True)
class Adapted:
    """The copy with an adapter."""

    name: str
    adapter: Beside

    @property
    def bytes(self) -> int:
        return self.adapter.bytes

    @contextmanager
    def speaking(self, loaded: LoadedModel) -> Iterator[PreTrainedModel]:
        with stock_attention(loaded) as whole, self.adapter.at_work():
            yield whole


@dataclass(frozen=True, slots=True)
class Steered:
    """The copy, turned along a feature."""

    name: str
    edit: Edit

    @property
    def bytes(self) -> int:
        return self.edit.direction.nbytes

    @contextmanager
    def speaking(self, loaded: LoadedModel) -> Iterator[PreTrainedModel]:
        with stock_attention(loaded) as whole, steered(loaded.blocks, [self.edit]):
            yield whole


@dataclass(frozen=True, slots=True)
class Other:
    """Another model of the same tokenizer, loaded in full."""

    name: str
    model: LoadedModel

    @property
    def bytes(self) -> int:
        assert self.model.answerer is not None
        return sum(weight.nbytes for weight in self.model.answerer.parameters())

    def speaking(self, loaded: LoadedModel) -> AbstractContextManager[PreTrainedModel]:
        return stock_attention(self.model)


# --- registered ones -----------------------------------------------------------------------------

SECTION: Final = "identity.alternatives"


def require_features(
    registered: Sequence[AlternativeSettings], features: Sequence[Feature], *, canaries: int
) -> None:
    """Raises `ConfigurationError` where one is to be steered along what the pack does not hold."""
    names = [feature.name for feature in features]
    for one in registered:
        if one.steer is None:
            continue
        if one.steer.feature not in names:
            raise ConfigurationError(
                f"{SECTION}: {one.name}: the pack has no feature {one.steer.feature!r} to steer along",
                hint=f"it has {', '.join(names)}",
            )
        if canaries == 0:
            raise ConfigurationError(
                f"{SECTION}: {one.name}: the pack has no canaries, on which the typical length of a residual"
                " is measured",
                hint="Build the pack again, or leave the alternative out.",
            )


def built(
    registered: Sequence[AlternativeSettings],
    loaded: LoadedModel,
    features: Sequence[Feature],
    canaries: Sequence[Prompt],
    settings: ReplaySettings,
) -> tuple[Alternative, ...]:
    """The alternatives, ready to speak beside ``loaded``, a copy loaded in full by ``settings``.

    ``features`` and ``canaries`` are the pack's. Blocks for as long as the disk takes. Raises `ModelError` or
    `ConfigurationError`, which name the entry, for one that cannot be had.
    """
    require_features(registered, features, canaries=len(canaries))
    by_name = {feature.name: feature for feature in features}
    turned = {one.name: by_name[one.steer.feature] for one in registered if one.steer is not None}
    lengths = typical_lengths(loaded, settings, canaries, [one.site for one in turned.values()])
    found: list[Alternative] = []
    for one in registered:
        where = f"{SECTION}: {one.name}"
        if one.adapter is not None:
            assert loaded.answerer is not None
            found.append(
                Adapted(one.name, beside(loaded.answerer, one.adapter, f"{where}: adapter"))
            )
        elif one.model is not None:
            found.append(Other(one.name, _other(one.model, loaded, settings, where)))
        elif one.steer is not None:
            feature = turned[one.name]
            length = one.steer.strength * lengths[feature.site]
            direction = torch.from_numpy(feature.written_along).to(loaded.device)
            found.append(Steered(one.name, push(feature.site, direction, length)))
    return tuple(found)


def _other(folder: Path, loaded: LoadedModel, settings: ReplaySettings, where: str) -> LoadedModel:
    """The model in ``folder``, placed as the copy is, and in its dtype."""
    try:
        dtype = str(loaded.dtype).removeprefix("torch.")
        other = load_model(
            settings.model_copy(update={"model": folder, "adapter": None, "dtype": dtype}),
            0,
            full=True,
        )
    except ModelError as error:
        raise ModelError(f"{where}: {error}", hint=error.hint) from error
    if other.identity.tokenizer_hash != loaded.identity.tokenizer_hash:
        raise ConfigurationError(
            f"{where}: {folder} has another tokenizer than the copy, so it cannot say the same tokens",
            hint="register revisions of the served model alone",
        )
    return other


# --- answers -------------------------------------------------------------------------------------


def compared(
    loaded: LoadedModel,
    rows: Sequence[Tokens],
    laws: Sequence[DrawnBy],
    alternatives: Sequence[Alternative] = (),
) -> list[Weighed]:
    """`monitor.replay.surprise.surprises`, each with how the alternatives find the answer.

    One pass more for each of them. An answer that does not fit into memory there, or has no finite law, is not
    likened to that one; one whose law is an estimate to none, for no bet between two models is safe from its error.
    """
    readers = read(loaded, rows, laws)
    found = outcomes(rows, readers)
    weighed = [
        index
        for index, one in enumerate(found)
        if isinstance(one, Surprise) and one.said_by != "baseline"
    ]
    if not alternatives or not weighed:
        return found
    ends = end_tokens(loaded)
    likened: dict[int, dict[str, Likened]] = {index: {} for index in weighed}
    for alternative in alternatives:
        with alternative.speaking(loaded) as whole:
            others = read_all(
                whole,
                loaded,
                [rows[index] for index in weighed],
                lambda place: _Other(readers[weighed[place]], ends),
            )
        for place, other in others.items():
            if (one := other.result()) is not None:
                likened[weighed[place]][alternative.name] = one
    return [
        replace(one, likened=likened[index])
        if isinstance(one, Surprise) and index in likened
        else one
        for index, one in enumerate(found)
    ]


def _capped(gain: torch.Tensor) -> torch.Tensor:
    """Log bets [t, c] that hold while `OTHER_TOKENS` of the tokens are any at all.

    What a cap takes from a bet's mean would lower its price; it is not known here, for the two laws are never held
    side by side.
    """
    caps = torch.tensor(CAPS).to(gain)
    return torch.minimum(gain[:, None], caps.log()) - torch.log1p(OTHER_TOKENS * (caps - 1))


@dataclass
class _Other:
    """Takes an alternative's logits of an answer that ``copy`` has read."""

    copy: Reader
    ends: tuple[int, ...]
    taken: int = 0
    columns: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    end: float = 0.0
    """log q/p of the event that an end token was drawn behind the answer, at its price."""

    @property
    def row(self) -> Tokens:
        return self.copy.row

    def take(self, logits: torch.Tensor) -> None:
        law = self.copy.law
        for scores, said in spoken(self.row, law, self.taken, logits):
            first, self.taken = self.taken, self.taken + len(said)
            if len(said) and is_greedy(law):
                self.columns.append(self._away(scores[: len(said)], said, first))
            elif len(said):
                self.columns.append(self._drawn(scores[: len(said)], said, first))
            if len(said) < len(scores) and self.copy.ended is not None:
                log_law, _, price = law_of(scores[len(said) :], law)
                share = float(end_share(log_law.exp()[0], self.ends).log())
                self.end = share - self.copy.ended - price

    def _drawn(
        self, scores: torch.Tensor, said: torch.Tensor, first: int
    ) -> tuple[torch.Tensor, ...]:
        """log q/p [t], log bets [t, c], centred surprise under q [t] and its variance [t]."""
        log_law, _, price = law_of(scores, self.copy.law)
        drawn, excess, variance = centred(log_law, log_law.exp(), said)
        gain = drawn - torch.cat(self.copy.said)[first : first + len(said)].to(drawn)
        bets = _capped(gain - price)
        return gain, bets, excess, variance

    def _away(
        self, scores: torch.Tensor, said: torch.Tensor, first: int
    ) -> tuple[torch.Tensor, ...]:
        """log q/p [t] and log bets [t, c] at temperature 0, where the two would say different tokens; else 0.

        A token that is one of the alternative's most likely and none of the copy's has a probability of
        `GREEDY_SLIP` at most while the copy speaks. It wins, one that is the other way round loses, and of a token that
        is both or neither only the price is paid.
        """
        best = scores.amax(dim=1)
        likeliest = torch.cat(self.copy.likeliest)[first : first + len(said)].to(said)
        apart = best - scores.gather(1, likeliest[:, None])[:, 0] > GIVEN_AWAY
        copys = torch.cat(self.copy.away)[first : first + len(said)].to(best) <= GIVEN_AWAY
        others = best - scores.gather(1, said[:, None])[:, 0] <= GIVEN_AWAY
        won = others.to(best) - copys.to(best)
        caps = torch.tensor(CAPS).to(best)
        bets = won[:, None] * caps.log() - torch.log1p(GREEDY_SLIP * (caps - 1))
        gain = won * float(np.log((1 - GREEDY_SLIP) / GREEDY_SLIP))
        nothing = torch.where(torch.isfinite(best), 0.0, torch.nan)
        return torch.where(apart, gain, nothing), torch.where(apart[:, None], bets, 0.0)

    def result(self) -> Likened | None:
        """None where a law is not finite."""
        gains, bets, *own = (
            torch.cat(column).double().cpu().numpy() for column in zip(*self.columns, strict=True)
        )
        # Where the answer may have ended at a limit instead, the lower of the two possible gains counts.
        end = min(self.end, 0.0) if may_have_ended(self.copy.law) else 0.0
        gain, log_bets = float(gains.sum()) + end, bets.sum(axis=0) + end
        excess, variance = (float(column.sum()) for column in own) if own else (0.0, 0.0)
        if not np.isfinite([gain, *log_bets, excess, variance]).all():
            return None
        return Likened(
            tokens=len(gains),
            gain=gain,
            log_bets=log_bets,
            excess=excess,
            variance=variance,
            drawn=bool(own),
        )
