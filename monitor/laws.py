"""By which law a served answer was drawn, as its record and the settings say; and when neither can. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from monitor.settings import Settings
from monitor.values.fidelity import was_cut_short
from monitor.values.prompts import Prompt, Sampling
from monitor.values.surprise import NotWeighed

_DRAWN_BY: Final = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)


class Laws:
    """The laws of logged answers under one configuration."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.identity
        self._reasoning = settings.replay.replay_reasoning

    def of(self, prompt: Prompt) -> Sampling:
        """How the answer was drawn: as its record says, else as the settings do."""
        said = prompt.sampling or Sampling()
        return replace(
            said,
            temperature=(
                self._settings.temperature if said.temperature is None else said.temperature
            ),
            top_p=self._settings.top_p if said.top_p is None else said.top_p,
        )

    def assumed(self, prompt: Prompt) -> bool:
        """Temperature or top_p are the settings', for the record does not say them."""
        said, law = prompt.sampling or Sampling(), self.of(prompt)
        return (law.temperature, law.top_p) != (said.temperature, said.top_p)

    def untold(self, prompt: Prompt) -> bool:
        """Neither the record nor the settings say anything of how the answer was drawn."""
        if self._settings.temperature is not None or self._settings.top_p is not None:
            return False
        said = prompt.sampling or Sampling()
        return not said.logit_bias and all(getattr(said, name) is None for name in _DRAWN_BY)

    def why_not(self, prompt: Prompt) -> NotWeighed | None:
        """What keeps the record's answer from being held against a law, by the first that applies."""
        law = self.of(prompt)
        reasons = (
            (not prompt.answered, NotWeighed.NO_ANSWER),
            (prompt.media_left_out, NotWeighed.MEDIA),
            (bool(prompt.tool_calls), NotWeighed.TOOL_CALLS),
            (bool(prompt.reasoning) and not self._reasoning, NotWeighed.REASONING_MISSING),
            (bool(law.steered_by), NotWeighed.STEERED),
            (bool(law.stop) and not was_cut_short(prompt), NotWeighed.STOP_SEQUENCE),
            (law.temperature is None and law.top_k != 1, NotWeighed.SAMPLING_UNKNOWN),
        )
        return next((reason for applies, reason in reasons if applies), None)
