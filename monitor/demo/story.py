"""`monitor demo`: the production path on embedded parts, from a quiet baseline to a resolved alert.

The loops run as a user runs them, with a configuration file and in a process of their own
(`stage`). This module plays the world around them: the traffic, the person who approves a baseline,
the receiver of the webhooks, and somebody who reads the history in SQL.
"""

from __future__ import annotations

import io
import random
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.syntax import Syntax
from rich.table import Table

from monitor.demo.chat_model import chat_model
from monitor.demo.history import WHAT_HAPPENED
from monitor.demo.receiver import Received
from monitor.demo.screen import Snapshot, draw
from monitor.demo.stage import BASELINE_PROMPTS, TOPIC, Stage, ended_by_signals, require_own
from monitor.demo.traffic import Sender
from monitor.values.witnesses import Cause

CODE_SHARE = 0.5
REFUSAL_SHARE = 0.3
QUIET_PROMPTS = 70
"""Prompts of each act that must page nobody."""
ANSWERED = 3
"""The last act ends with so many answers of the copy's own, and twice as many prompts without."""
ACT_SECONDS = 180.0
LOOK_SECONDS = 0.5
RATE_SECONDS = 10.0


def tell(*, state: Path, cache: Path, keep: bool = False, record: Path | None = None) -> bool:
    """Play the demo; True when the signed alert and its resolution were received and verified, and prompts
    without an answer were read.

    ``state`` is deleted first and holds all that is written, except the converted model in ``cache``.
    With ``keep`` the parts stay up, until the next demo; a demo that is ended before takes them along. ``record`` gets the screen as SVG.
    """
    require_own(state)  # before minutes are spent on the model
    console = Console()
    with ended_by_signals(), ExitStack() as open_parts:
        with console.status("preparing the small chat model") as status:
            model = chat_model(cache, progress=status.update)
            status.update(
                "starting PostgreSQL, a Kafka-protocol broker, a receiver and the monitor"
            )
            stage = open_parts.enter_context(Stage(state, model, keep=keep))
        sender = Sender(stage.broker.bootstrap, TOPIC, chance=random.Random(7))
        with sender, Live(console=console, auto_refresh=False) as live:
            play = _Play(stage, sender, show=lambda seen: live.update(draw(seen), refresh=True))
            told = play.acts()
            alone = told and play.prompts_alone()
        _explain(console, stage, play, told=told, keep=keep)
        if told and not alone:
            console.print("[bold red]Too few prompts without an answer were read.[/]")
        if record:
            _record(record, play)
    return told and alone


class _Play:
    """The acts, and the latest picture of what they did."""

    def __init__(self, stage: Stage, sender: Sender, *, show: Callable[[Snapshot], None]) -> None:
        self._stage = stage
        self._sender = sender
        self._show = show
        self._started = time.monotonic()
        self._scored: deque[tuple[float, int]] = deque()
        self.seen = Snapshot(act="", elapsed_seconds=0, prompts_per_second=0, scored=0, shares={})
        self.height: Snapshot | None = None
        """The picture when the alert had just been received."""
        self.paged_wrongly = ""
        """What paged and must not."""

    def acts(self) -> bool:
        if not self._act("1/7  everyday traffic, for a baseline", self._enough):
            return False
        # The person who looks at the scores and says: this is normal.
        self._stage.command(
            "baseline", "capture", "--last", "10m", "--approve", "--by", "the demo's audience"
        )
        if not self._act("2/7  everyday traffic against the approved baseline", self._quiet):
            return False
        if not self._pages_nobody(
            "3/7  users change the topic: half of them ask about code", "code", CODE_SHARE
        ):
            return False
        title = "4/7  a filter refuses three in ten: a refusal is no malice"
        if not self._pages_nobody(title, "refusals", REFUSAL_SHARE):
            return False
        self._sender.shares = {"replaced": 1.0}
        if not self._act("5/7  the served model is replaced by one that deceives", self._told):
            return False
        self._sender.shares = {}
        return self._act("6/7  the right model answers again", self._resolved)

    def _pages_nobody(self, title: str, pool: str, share: float) -> bool:
        """An act of harmless change; False when somebody was paged for it."""
        self._sender.shares = {pool: share}
        until = self.seen.scored + QUIET_PROMPTS
        lasted = self._act(title, lambda: self.seen.scored >= until)
        self._sender.shares = {}
        self.paged_wrongly = title if self._detected() else ""
        return lasted and not self.paged_wrongly

    def prompts_alone(self) -> bool:
        """The last act: what is read of prompts without an answer depends on the pack's regions."""
        self._sender.answers = False
        return self._act("7/7  answers are no longer logged: prompts alone", self._alone)

    def _act(self, title: str, done: Callable[[], bool]) -> bool:
        """Look and show until ``done``; False when the act takes too long."""
        deadline = time.monotonic() + ACT_SECONDS
        while time.monotonic() < deadline:
            self._stage.require_monitor()
            self._look(title)
            if done():
                return True
            time.sleep(LOOK_SECONDS)
        return False

    def _look(self, title: str) -> None:
        history, now = self._stage.history, time.monotonic()
        scored = history.scored()
        self._sender.done = history.seen()
        self._scored.append((now, scored))
        while now - self._scored[0][0] > RATE_SECONDS:
            self._scored.popleft()
        then, before = self._scored[0]
        self.seen = Snapshot(
            act=title,
            elapsed_seconds=now - self._started,
            prompts_per_second=(scored - before) / max(now - then, LOOK_SECONDS),
            scored=scored,
            shares=self._sender.shares,
            features=history.features(),
            alerts=history.alerts(),
            webhooks=[self._line(request) for request in self._stage.receiver.received],
            notes=() if self._sender.answers else (history.alone().told,),
        )
        if self.height is None and self._detected():
            self.height = self.seen
        self._show(self.seen)

    def _line(self, request: Received) -> str:
        signature = "signature verified" if request.verified else "NOT VERIFIED"
        told = request.json
        return f"{told['type']}  {told['data'].get('summary', '')}  ({signature})"

    # --- what ends an act --------------------------------------------------------------------

    def _enough(self) -> bool:
        return self.seen.scored >= 1.2 * BASELINE_PROMPTS

    def _quiet(self) -> bool:
        return any(len(feature.shifts) >= 3 for feature in self.seen.features)

    def _told(self) -> bool:
        """That a persona moved, and that it was the model."""
        return any("feature" in one for one in self._detected()) and bool(self.verdict)

    @property
    def verdict(self) -> str:
        """Why it was the model, as an alert told it; empty while none has."""
        return next(
            (
                str(one["verdict"])
                for one in self._detected()
                if one.get("cause") == Cause.MODEL_SHIFT
            ),
            "",
        )

    def _detected(self) -> list[dict[str, Any]]:
        """The details of every alert that was told."""
        return [
            request.json["data"]["details"]
            for request in self._verified()
            if request.json["type"] == "drift.detected"
        ]

    def _resolved(self) -> bool:
        still_open = any(state in ("pending", "firing") for state, _, _ in self.seen.alerts)
        return not still_open and self._announced() and self._heard("drift.resolved")

    def _alone(self) -> bool:
        seen = self._stage.history.alone()
        return seen.answered >= ANSWERED and seen.read + seen.skipped >= 2 * ANSWERED

    def _announced(self) -> bool:
        """Every alert that was told has also been told to be over."""
        told, over = (
            {r.json["data"].get("alert_id") for r in self._verified() if r.json["type"] == kind}
            for kind in ("drift.detected", "drift.resolved")
        )
        return told <= over

    def _heard(self, kind: str) -> bool:
        return any(request.json["type"] == kind for request in self._verified())

    def _verified(self) -> list[Received]:
        return [request for request in self._stage.receiver.events if request.verified]


def _explain(console: Console, stage: Stage, play: _Play, *, told: bool, keep: bool) -> None:
    rows = stage.history.rows(WHAT_HAPPENED)
    console.print("\n[bold]The same in SQL[/], on the documented views:")
    console.print(Syntax(WHAT_HAPPENED.strip(), "sql", background_color="default"))
    table = Table(*rows[0]) if rows else Table("no alert")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)
    if told:
        console.print(f"Why it was the model: {play.verdict}")
        console.print(stage.history.alone().told)
    if told and play.height:
        seconds = play.height.elapsed_seconds
        console.print(
            f"[bold green]The signed alert was received after {seconds:.0f} s, "
            "and its resolution; both signatures are right.[/]"
        )
    elif play.paged_wrongly:
        console.print(f"[bold red]Somebody was paged in act {play.paged_wrongly}.[/]")
    else:
        console.print(
            f"[bold red]Not every webhook came.[/] The monitor's log says more: {stage.log}"
        )
    if keep:
        port = stage.settings.web.port
        console.print(
            f"Left running until the next demo (the webhook receiver ended with this command):\n"
            f"  dashboard   http://127.0.0.1:{port}/\n"
            f"  database    psql '{stage.database_url}'\n"
            f"  commands    monitor alerts list --all --config {stage.config}"
        )
    console.print(
        "Next: README.md (deploy it), docs/sql.md (ask the history), docs/packs.md (your own features)."
    )


def _record(path: Path, play: _Play) -> None:
    console = Console(record=True, width=104, file=io.StringIO(), force_terminal=True)
    console.print(draw(replace(play.height or play.seen, webhooks=play.seen.webhooks)))
    path.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(path), title="monitor demo")
