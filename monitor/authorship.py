"""Whether another model than the copy answers: what the rules of identity, twins and server canaries say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from monitor.alert.identity import identity_condition
from monitor.alert.server_canaries import server_condition
from monitor.alert.twin import twin_condition
from monitor.settings import Settings
from monitor.values.alerts import Condition
from monitor.values.prompts import EVERYTHING
from monitor.vouching import Examined


def by_identity(settings: Settings, examined: Sequence[Examined]) -> Iterator[Condition]:
    """Whether another model answers than the copy, of every pack whose instrument is not in doubt."""
    rule = settings.identity.rule
    for pack in examined:
        if rule is None or pack.heard.canaries.finding == "moved":
            continue
        for (segment, served, alternative), state in sorted(pack.heard.tests.items()):
            if alternative:
                continue
            bets = [
                other
                for other in pack.heard.tests.values()
                if other.stream[:2] == (segment, served) and other.alternative
            ]
            prompts = pack.prompts(segment)
            found = pack.heard.verdict(segment, pack.shortest, prompts=prompts)
            made = identity_condition(pack.subject.pack_id, state, found, rule, bets)
            if made is not None:
                yield made


def by_twins(settings: Settings, examined: Sequence[Examined]) -> Iterator[Condition]:
    """Whether answers read otherwise than the copy's own, of every pack whose instrument is not in doubt."""
    rule = settings.twin.rule
    for pack in examined:
        twins = pack.heard.twins
        if rule is None or twins is None or pack.heard.canaries.finding == "moved":
            continue
        for segment, states in sorted(twins.tests.items()):
            found = pack.heard.verdict(segment, pack.shortest, prompts=pack.prompts(segment))
            windows = twins.windows.get((pack.shortest, segment), {})
            made = twin_condition(
                pack.subject.pack_id, segment, states, twins.features, windows, found, rule
            )
            if made is not None:
                yield made


def by_server_canaries(settings: Settings, examined: Sequence[Examined]) -> Iterator[Condition]:
    """Whether the served endpoint, asked directly, is another model; nothing where that is not known."""
    rule = settings.server_canaries.rule
    for pack in examined:
        heard, standing = pack.heard, pack.heard.server
        if rule is None or standing is None or heard.canaries.finding == "moved":
            continue
        if heard.asked_directly(standing, pack.shortest).finding != "absent":
            assert standing.concluded is not None
            found = heard.verdict(EVERYTHING, pack.shortest, prompts=pack.prompts(EVERYTHING))
            yield server_condition(standing.concluded, found, rule)
