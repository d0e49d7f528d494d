"""Commands whose exit code is a decision, for pipelines: 0 pass, 1 fail, 2 inconclusive, and `REFUSED` for all else."""

from __future__ import annotations

import traceback
from typing import Any, Final

import typer
from typer.core import TyperCommand

from monitor.cli.show import explain
from monitor.errors import MonitorError

REFUSED: Final = 3
"""Nothing was decided."""


class DecidingCommand(TyperCommand):
    """What keeps a command from deciding must not look like a decision."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """A mistyped option must not look like the verdict "inconclusive", which is 2."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if getattr(error, "exit_code", None) == 2:
                error.exit_code = REFUSED  # type: ignore[attr-defined]
            raise

    def invoke(self, ctx: Any) -> Any:
        """An error or a crash must not look like the verdict "fail", which is 1."""
        try:
            return super().invoke(ctx)
        except MonitorError as error:
            explain(error)
        except Exception as error:
            if isinstance(error, typer.Abort) or hasattr(error, "exit_code"):
                raise
            traceback.print_exc()
        raise typer.Exit(REFUSED)
