"""The console script: groups of commands, and what an error looks like. Arguments and exit codes only.

Exit codes: 0 well, 1 stopped loudly or found something wrong, 2 refused (configuration, pack, model,
schema, bad input, or a service that a command needs does not answer). `monitor gate` has its own.
"""

from __future__ import annotations

import sys
import traceback

import typer

from monitor.cli.alerts import alerts, deliveries
from monitor.cli.backtest import backtests
from monitor.cli.baselines import baseline
from monitor.cli.canaries import canaries
from monitor.cli.configuration import config
from monitor.cli.gate import gates
from monitor.cli.loops import commands
from monitor.cli.models import model
from monitor.cli.offsets import offsets
from monitor.cli.packs import pack
from monitor.cli.power import powers
from monitor.cli.realign import realigns
from monitor.cli.show import explain
from monitor.cli.steer import steers
from monitor.dumps import leave_no_dump
from monitor.errors import MonitorError, StopLoudly
from monitor.logs import configure_command
from monitor.redaction import without_secrets

app = typer.Typer(
    help="Watches inside a served language model while it serves: replays sampled prompts, scores "
    "misaligned-persona features, and raises alerts when they drift.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(commands)
app.add_typer(backtests)
app.add_typer(powers)
app.add_typer(realigns)
app.add_typer(gates)
app.add_typer(steers)
for name, group in (
    ("baseline", baseline),
    ("alerts", alerts),
    ("deliveries", deliveries),
    ("canaries", canaries),
    ("offsets", offsets),
    ("pack", pack),
    ("model", model),
    ("config", config),
):
    app.add_typer(group, name=name, no_args_is_help=True)


def main() -> None:
    """Every error a person can act on is one sentence and a hint."""
    leave_no_dump()
    configure_command()
    try:
        app()
    except MonitorError as error:
        explain(error)
        sys.exit(1 if isinstance(error, StopLoudly) else 2)
    except Exception:
        # A fault of ours: all that can be said of it, but for secrets.
        sys.stderr.write(without_secrets(traceback.format_exc()))
        sys.exit(1)


if __name__ == "__main__":
    main()
