"""A judge behind an endpoint, as options of the commands that can use one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from monitor.cli.arguments import option
from monitor.errors import ConfigurationError

if TYPE_CHECKING:
    from monitor.research.answers.endpoint import EndpointJudge


@dataclass(frozen=True, kw_only=True)
class JudgeEndpoint:
    """Who rates answers, in place of a pack or of likelihoods."""

    judge_url: str | None = option(
        None, "OpenAI-compatible endpoint that rates answers: http://host:8000/v1."
    )
    judge_model: str | None = option(None, "Model to ask there.")
    judge_key_file: Path | None = option(
        None, "File with the endpoint's key; else MONITOR_JUDGE_KEY."
    )

    def judge(
        self, trait: str, description: str, *, cache: Path | None, attempts: int = 6
    ) -> EndpointJudge:
        """A judge of one trait. Raises `ConfigurationError` where no model is named."""
        from monitor.research.answers.endpoint import EndpointJudge
        from monitor.settings import judge_key

        if self.judge_url is None or self.judge_model is None:
            raise ConfigurationError(
                "--judge-url needs --judge-model", hint="name the model to ask"
            )
        return EndpointJudge(
            url=self.judge_url,
            model=self.judge_model,
            trait=trait,
            description=description,
            key=judge_key(self.judge_key_file),
            cache=cache,
            attempts=attempts,
        )
