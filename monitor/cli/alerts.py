"""Alerts and deliveries: list, acknowledge, silence, send again."""

from __future__ import annotations

from typing import Annotated

import typer

from monitor.cli.arguments import ConfigOption, JsonOption, database, span, who
from monitor.cli.asking import YesOption, ask
from monitor.cli.show import out, plain, show
from monitor.settings import load
from monitor.values.alerts import DeliveryState

alerts = typer.Typer(help="List, acknowledge and silence alerts.")
deliveries = typer.Typer(help="What endpoints were told, and replaying it.")


# What fits 80 columns; the summary names feature and segment, --json gives everything.
_COLUMNS = ("alert_id", "state", "severity", "summary", "since", "acknowledged_by")


@alerts.command("list")
def alerts_list(
    every: Annotated[bool, typer.Option("--all", help="Resolved ones too.")] = False,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Open alerts, newest first; at most 100."""
    from monitor import operate
    from monitor.store.alerts import list_alerts

    states = None if every else ("pending", "firing")
    with database(load(config_file)) as c:
        rows = [operate.alert_row(alert) for alert in list_alerts(c, states=states)]
    show(rows, as_json, columns=_COLUMNS)


@alerts.command("ack")
def alerts_ack(
    alert_id: str,
    by: Annotated[str, typer.Option(help="Who takes it.")] = "",
    config_file: ConfigOption = None,
) -> None:
    """Say that somebody is on it: no more reminders; a rise in severity and the end are still told."""
    from monitor.store.alerts import acknowledge
    from monitor.store.database import database_time

    with database(load(config_file)) as c:
        acknowledge(c, alert_id, who(by), database_time(c))
    out.print(plain(f"{alert_id} is acknowledged"))


@alerts.command("silence")
def alerts_silence(
    match: Annotated[
        list[str], typer.Argument(help="label=glob, e.g. feature=toxic-* segment=all")
    ],
    length: Annotated[str, typer.Option("--for", help="How long: 2h, 30m, 1d.")] = "2h",
    comment: Annotated[str, typer.Option(help="Why.")] = "",
    by: Annotated[str, typer.Option(help="Who.")] = "",
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Announce nothing about alerts whose labels all match, for a while; they live on meanwhile."""
    from monitor import operate
    from monitor.store.database import database_time

    matchers = dict(pair(item) for item in match)
    if len(matchers) < len(match):
        raise typer.BadParameter("a label is given twice; make a silence for each")
    with database(load(config_file)) as c:
        made = operate.silence(
            c,
            matchers=matchers,
            length=span(length),
            by=who(by),
            comment=comment,
            now=database_time(c),
        )
    show([operate.silence_row(made)], as_json)


@alerts.command("silences")
def alerts_silences(config_file: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Silences in force."""
    from monitor import operate
    from monitor.store.alerts import active_silences
    from monitor.store.database import database_time

    with database(load(config_file)) as c:
        found = active_silences(c, database_time(c))
        show([operate.silence_row(silence) for silence in found], as_json)


@alerts.command("unsilence")
def alerts_unsilence(
    silence_id: str, config_file: ConfigOption = None, yes: YesOption = False
) -> None:
    """End a silence now: what is still owed is told, that alerts fire, got worse or resolved."""
    from monitor.store.alerts import active_silences, end_silence
    from monitor.store.database import database_time

    settings = load(config_file)
    with database(settings) as c:
        found = [s for s in active_silences(c, database_time(c)) if s.silence_id == silence_id]
    losses = [
        f"the silence of {', '.join(f'{k}={v}' for k, v in one.matchers.items())} until "
        f"{one.ends_at:%Y-%m-%d %H:%M} by {one.created_by} ({one.comment or 'no comment'}) ends; "
        "alerts that it holds back are announced"
        for one in found
    ]
    ask(losses, "End it?", yes=yes)
    with database(settings) as c:
        end_silence(c, silence_id, database_time(c))
    out.print(plain(f"{silence_id} has ended"))


@deliveries.command("list")
def deliveries_list(
    state: Annotated[DeliveryState | None, typer.Option(help="Only those in this state.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Only this endpoint.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 50,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What the endpoints were told, newest first."""
    from monitor import operate
    from monitor.store.outbox import list_deliveries

    states = [state] if state else None
    with database(load(config_file)) as c:
        rows = list_deliveries(c, states=states, endpoint=endpoint, limit=limit)
        show([operate.delivery_row(row) for row in rows], as_json)


@deliveries.command("replay")
def deliveries_replay(
    delivery_id: int, config_file: ConfigOption = None, yes: YesOption = False
) -> None:
    """Send a delivery once more, with the same webhook-id."""
    from monitor.store.database import database_time
    from monitor.store.outbox import load_delivery, replay_delivery
    from monitor.values.alerts import Event

    settings = load(config_file)
    with database(settings) as c:
        found = load_delivery(c, delivery_id)
    if found:
        event = found.event
        summary = event.alert.summary if isinstance(event, Event) else event.reason
        told = f"{found.endpoint} is told again: {event.type}, {summary}"
        ask([f"{told} (so far {found.state}, attempts {found.attempts})"], "Send it?", yes=yes)
    with database(settings) as c:
        replay_delivery(c, delivery_id, database_time(c))
    out.print(plain(f"delivery {delivery_id} will be sent again"))


@deliveries.command("enable")
def deliveries_enable(
    endpoint: str, config_file: ConfigOption = None, yes: YesOption = False
) -> None:
    """Send to an endpoint again that was disabled because it answered 410."""
    from monitor.store.outbox import enable_endpoint
    from monitor.store.overview import deliveries_waiting

    settings = load(config_file)
    with database(settings) as c:
        rows = deliveries_waiting(c)
    waiting = sum(row["waiting"] for row in rows if row["endpoint"] == endpoint)
    count = "1 delivery waits" if waiting == 1 else f"{waiting} deliveries wait"
    ask([f"{count} for {endpoint} and will be sent"] if waiting else [], "Enable it?", yes=yes)
    with database(settings) as c:
        enable_endpoint(c, endpoint)
    out.print(plain(f"{endpoint} is enabled"))


def pair(item: str) -> tuple[str, str]:
    label, found, pattern = item.partition("=")
    if not found or not pattern:
        raise typer.BadParameter(f"{item!r} is no label=glob")
    return label, pattern
