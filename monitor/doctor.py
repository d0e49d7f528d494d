"""`monitor doctor`: looks at every part that the loops need, and says what is wrong and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from monitor.alert import replays
from monitor.alert.judged import ALLOW, require_judged
from monitor.alert.probe import knock, send_test
from monitor.alert.selection import Blind, blind
from monitor.calling import Caller
from monitor.canaries import canary_run
from monitor.capacity import reads
from monitor.drift.lateness import reach
from monitor.errors import MonitorError, PackError, RefuseToStart
from monitor.finding import Finding, look
from monitor.ingest.kafka import (
    describe,
    newest_records,
    principal,
    readable_codecs,
    rights,
)
from monitor.instrument import Instrument, build_instrument, dtypes_before, pack_in_use
from monitor.operate import TAILS_MEND, tails_not_known
from monitor.score.pack import Pack, load_pack
from monitor.settings import Endpoint, Settings
from monitor.store.baselines import load_baseline
from monitor.store.database import (
    connect,
    current_revision,
    database_time,
    require_schema,
    transaction,
)
from monitor.store.fidelity import replays_compared
from monitor.store.outbox import disabled_endpoints
from monitor.store.packs import pack_presence
from monitor.store.progress import ends_not_told, progress_of
from monitor.store.roles import require_reader
from monitor.survey import mends, outcomes_of, survey
from monitor.unanswered import Unanswered
from monitor.values.presence import foremost, live, several_live
from monitor.values.prompts import Prompt
from monitor.values.verdicts import DECISIONS

COMPARED: Final = timedelta(hours=1)
"""How far back prompts are looked at for the server's token counts."""


@dataclass(slots=True)
class _Met:
    """What a finding leaves for a later one."""

    instrument: Instrument | None = None
    prompts: Sequence[Prompt] = ()


def examine(
    settings: Settings,
    *,
    with_model: bool = True,
    send_tests: bool = False,
    rate: float | None = None,
) -> Iterator[Finding]:
    """Look at configuration, pack, model, Postgres, Kafka, its newest records, how many this machine
    can read, what is read and how truly, and endpoints.

    One failure stops no other.

    ``with_model=False`` leaves out loading the model, which may take minutes. ``send_tests`` posts a
    signed test event to every endpoint; without it what an endpoint takes is asked, not proven.
    ``rate`` are the exchanges a second that are expected: can one worker here read its sample of them?
    """
    met = _Met()
    yield Finding(subject="configuration", well=True, seen="valid")
    yield from look("pack", lambda: _pack(settings), "Mend pack.path, or build the pack again.")
    yield from _rules(settings)
    if with_model:
        mend = "Mend replay.model: a model folder with safetensors and a tokenizer, or a GGUF file."
        yield from look("model", lambda: _model(settings, met), mend)
    database = "Look at the server that postgres.url names, and at its log."
    yield from look("postgres", lambda: _postgres(settings), database)
    role = settings.postgres.reader_role
    if role is not None:
        yield from look("reader role", lambda: _reader(settings, role), database)
    yield from look("packs in use", lambda: _packs_in_use(settings), database)
    yield from look("baseline", lambda: _baseline(settings), database)
    yield from look("kafka compression", lambda: f"{', '.join(readable_codecs())} can be read")
    yield from look("kafka", lambda: _kafka(settings), "Mend the field of kafka that is named.")
    yield from _rights(settings)
    yield from _records(settings, met)
    if met.instrument is not None:
        yield from reads(met.instrument, met.prompts, settings.ingest, rate)
    yield from look("reading", lambda: _reading(settings), database)
    yield from look("fidelity", lambda: _fidelity(settings), database)
    if not settings.alerts.endpoints:
        yield Finding(
            subject="endpoints",
            well=False,
            seen="nobody is told of alerts",
            mend="Add one under alerts.endpoints.",
        )
    for endpoint in settings.alerts.endpoints:
        asked = partial(_endpoint, endpoint, settings, send_tests)
        yield from look(f"endpoint {endpoint.name}", asked, "Mend this entry of alerts.endpoints.")
    yield from _disabled(settings)


def _pack(settings: Settings) -> str:
    if settings.pack.path is None:
        return "the one shipped for the model, chosen when the model is looked at"
    pack = load_pack(settings.pack.path)
    return f"{pack.name} {pack.version}, {len(pack.features)} features, id {pack.pack_id[:12]}"


def _rules(settings: Settings) -> Iterator[Finding]:
    """One finding for each rule or endpoint that can select nothing; one that all is well without any."""
    features, unknown = None, ""
    try:
        pack = load_pack(settings.pack.path) if settings.pack.path else pack_in_use(settings)[0]
        features = pack.selectable
        yield from look("verdicts", lambda: _verdicts(settings, pack))
    except MonitorError:
        unknown = "; the pack is not known, so their features were not looked at"
    found: dict[str, list[Blind]] = {}
    for one in blind(settings, features):
        found.setdefault(one.where, []).append(one)
    for where, faults in found.items():
        yield Finding(
            subject=where,
            well=False,
            seen="; ".join(fault.why for fault in faults),
            mend=" ".join(dict.fromkeys(fault.mend for fault in faults)),
        )
    if not found:
        many = len(settings.drift.rules)
        seen = f"{many} drift rules, each can select something{unknown}"
        yield Finding(subject="rules", well=True, seen=seen)


def _verdicts(settings: Settings, pack: Pack) -> str:
    """What the judge says of the features, and what of it is overruled."""
    allowed = require_judged(settings, pack.name, pack.selectable, pack.verdicts)
    by_decision = {
        decision: [name for name, found in pack.verdicts.items() if found == decision]
        for decision in reversed(DECISIONS)
    }
    said = [f"{decision}: {', '.join(names)}" for decision, names in by_decision.items() if names]
    parts = said or ["the pack holds no judge's verdict"]
    return "; ".join([*parts, *(f"{one} (allowed by {ALLOW})" for one in allowed)])


def _model(settings: Settings, met: _Met) -> str:
    instrument = build_instrument(settings, before=partial(_dtypes_before, settings))
    met.instrument = instrument
    lineage = instrument.engine.lineage(instrument.pack.pack_id)
    reading = (
        f"{lineage.model_id} in {instrument.precision} on {lineage.device}, {instrument.packing}; "
        f"read by {instrument.pack.name}"
        f"{_alternatives(settings, instrument.alternatives)}"
    )
    reading += f" ({instrument.dtype_reason})" if instrument.dtype_reason else ""
    if not instrument.pack.canaries:
        return f"{reading}; the pack has no canaries, so its readings cannot be checked"
    run = canary_run(
        instrument.pack,
        instrument.engine,
        worker_id="doctor",
        tolerance=settings.pack.canary_tolerance,
        now=datetime.now(UTC),
    )
    if not run.reproduced:
        raise PackError(
            f"the copy in {settings.replay.model} does not reproduce the pack's canaries: "
            f"largest deviation {run.largest_deviation:.3g}, tolerated {run.noise_floor:.3g}",
            hint="Use the dtype, attention and model that the pack was made with, or rebuild the pack.",
        )
    return f"{reading}; canaries within {run.largest_deviation:.2g}"


def _alternatives(settings: Settings, held: Mapping[str, int]) -> str:
    """Which registered models answers are likened to, and what they take beside the copy."""
    if held:
        each = (f"{name} ({size / 2**20:.1f} MiB)" for name, size in held.items())
        return f"; answers are likened to {', '.join(each)}"
    if settings.identity.alternatives:
        return "; identity.alternatives are not asked, for identity.share is 0"
    return ""


def _dtypes_before(settings: Settings, pack_id: str) -> Sequence[str]:
    """None without a database: what is wrong with it is a finding of its own."""
    with suppress(MonitorError):
        return dtypes_before(connect(settings.postgres), settings.replay)(pack_id)
    return ()


def _postgres(settings: Settings) -> str:
    database = connect(settings.postgres)
    require_schema(database)
    return f"schema {current_revision(database)}"


def _packs_in_use(settings: Settings) -> str:
    with transaction(connect(settings.postgres)) as connection:
        packs = pack_presence(connection, database_time(connection))
    at_work = live(packs)
    if not at_work:
        return "no worker is alive"
    return several_live(packs) or f"{at_work[0].name}, live workers: {at_work[0].live_workers}"


def _baseline(settings: Settings) -> str:
    """Every live pack needs one of its own; without a live pack, the one that was seen last."""
    with transaction(connect(settings.postgres)) as connection:
        packs = pack_presence(connection, database_time(connection))
        meant = live(packs) or [pack for pack in (foremost(packs),) if pack]
        approved = {
            pack.pack_id: found
            for pack in meant
            if (found := load_baseline(connection, pack_id=pack.pack_id)) is not None
        }
        unknown = [said for one in approved.values() if (said := tails_not_known(connection, one))]
    missing = [pack for pack in meant if pack.pack_id not in approved]
    if missing or not meant:
        which = ", ".join(f"{pack.name} ({pack.pack_id[:12]})" for pack in missing)
        option = f" --pack {missing[0].pack_id[:12]}" if len(meant) > 1 else ""
        raise RefuseToStart(
            f"no baseline is approved for the pack in use{which and ', ' + which}: no drift can be seen",
            hint=f"`monitor baseline capture --last 24h{option}`, look at it, "
            "`monitor baseline approve ID`.",
        )
    if unknown:
        raise RefuseToStart("; ".join(unknown), hint=TAILS_MEND)
    return "; ".join(
        f"{found.name}, {found.n} prompts, approved by {found.approved_by}"
        for found in approved.values()
    )


def _kafka(settings: Settings) -> str:
    report = describe(settings.kafka)
    missing = list(report.missing_topics)
    if report.dead_letter_topic_missing:
        missing.append(str(settings.kafka.dead_letter_topic))
    if missing:
        raise RefuseToStart(
            f"topics not found: {', '.join(missing)}; they do not exist, or "
            f"{principal(settings.kafka)} may not DESCRIBE them",
            hint="Create them, mend kafka.topics and kafka.dead_letter_topic, or allow READ of the former "
            "and WRITE of the latter.",
        )
    counts = [f"{name}: {count} partitions" for name, count in report.partitions.items()]
    of = "" if report.newest_read == report.with_records else f" of {report.with_records}"
    word = "partition was" if (report.newest_read, of) == (1, "") else "partitions were"
    return f"{', '.join(counts)}; the newest record of {report.newest_read}{of} {word} read"


def _rights(settings: Settings) -> Iterator[Finding]:
    """What the brokers let us do; nothing where they do not answer."""
    try:
        found = rights(settings.kafka)
    except MonitorError:
        return  # said under kafka
    parts = []
    if found.missing:
        parts.append(f"{found.principal} lacks {', '.join(map(str, found.missing))}")
    if found.granted:
        parts.append(f"{found.principal} has {', '.join(map(str, found.granted))}")
    if found.untold:
        parts.append(f"the brokers do not tell of {', '.join(map(str, found.untold))}")
    yield Finding(
        subject="kafka rights",
        well=not found.missing,
        seen="; ".join(parts),
        mend=f"Grant it: {found.commands(settings.kafka.bootstrap_servers)}"
        if found.missing
        else "",
    )


def _records(settings: Settings, met: _Met) -> Iterator[Finding]:
    """The newest records, parsed as the worker would: what is there, and which setting helps."""
    unanswered = None
    with suppress(MonitorError):  # said under pack and model
        pack = load_pack(settings.pack.path) if settings.pack.path else pack_in_use(settings)[0]
        unanswered = Unanswered(settings.replay, pack.features)
    try:
        newest = newest_records(settings.kafka)
        outcomes = outcomes_of(newest.records, settings.ingest)
    except MonitorError as error:  # of Kafka, or of the schema registry
        mend = error.hint or "Mend the field that is named."
        yield Finding(subject="records", well=False, seen=str(error), mend=mend)
        return
    ratio = (rule for rule in settings.drift.silence_rules if rule.name == "dead_letter_ratio")
    seen = survey(len(newest.records), outcomes, unanswered)
    prompts = [one for one in outcomes if isinstance(one, Prompt)]
    met.prompts = unanswered.wanted(prompts).prompts if unanswered else prompts
    limit = next((rule.limit for rule in ratio if rule.limit), settings.ingest.dead_letter_limit)
    found = mends(seen, unanswered, limit)
    parts = [seen.sentence(), unanswered.told if unanswered else "the pack is not known"]
    if newest.cut:
        parts.append("time or bytes ran out before all were read")
    yield Finding(
        subject="records",
        well=not found,
        seen="; ".join(parts),
        mend=" ".join(found),
        figures=seen.figures,
    )


def _reading(settings: Settings) -> str:
    with transaction(connect(settings.postgres)) as connection:
        now = database_time(connection)
        progress = progress_of(connection, now, settings.kafka.group_id)
        untold = ends_not_told(connection, settings.kafka.group_id)
    beside = f"; of {untold} more the log's end is not known yet" if untold else ""
    if not progress and not untold:
        return f"no worker of group {settings.kafka.group_id} has read anything yet"
    seen = reach(progress, settings.drift, now)
    if seen.sentence:
        asked = max(one.asked_at for one in progress)
        raise RefuseToStart(
            f"{seen.sentence} (as of {asked:%Y-%m-%d %H:%M} UTC)",
            hint="Is a worker running? If so add workers or partitions, or lower "
            "ingest.sampling_rate; the view ingest_lag shows every partition.",
        )
    return f"{len(progress)} partitions, {sum(one.lag for one in progress)} records behind{beside}"


def _fidelity(settings: Settings) -> str:
    """The replay's token counts against the server's own, by the limit of the rule that watches them."""
    with transaction(connect(settings.postgres)) as connection:
        now = database_time(connection)
        packs = pack_presence(connection, now)
        found = replays_compared(connection, now - COMPARED, now)
    if not found:
        return "no prompt scored in the last hour carries the server's token counts: not measured"
    rules = {rule.name: rule for rule in settings.drift.silence_rules}
    limit = rules["replay_mismatch"].limit if "replay_mismatch" in rules else None
    names = {pack.pack_id: pack.name for pack in packs}
    said = {pack_id: replays.told(compared) for pack_id, compared in found.items()}
    seen = "; ".join(
        f"{names.get(pack_id, pack_id)}: {sentence}" if len(said) > 1 else sentence
        for pack_id, sentence in said.items()
    )
    for compared in found.values():
        low = replays.least_share(compared, settings.drift.confidence)
        if limit is not None and low > limit:
            raise RefuseToStart(
                f"{seen}: what is replayed is not what was served",
                hint=replays.mend(compared.mismatches[0]),
            )
    return seen


def _reader(settings: Settings, role: str) -> str:
    with transaction(connect(settings.postgres)) as connection:
        require_reader(connection, role)
    return f"{role} may read the views"


def _endpoint(endpoint: Endpoint, settings: Settings, send_tests: bool) -> str:
    with Caller() as caller:
        if not send_tests:
            return knock(endpoint, caller)
        url = settings.alerts.external_url
        return send_test(endpoint, caller, external_url=url, now=datetime.now(UTC))


def _disabled(settings: Settings) -> Iterator[Finding]:
    """Endpoints that are told nothing since they answered 410; without a database nothing is known."""
    try:
        with transaction(connect(settings.postgres)) as connection:
            disabled = disabled_endpoints(connection)
    except MonitorError:
        return  # said under postgres
    names = sorted(disabled.keys() & {endpoint.name for endpoint in settings.alerts.endpoints})
    if names:
        yield Finding(
            subject="disabled endpoints",
            well=False,
            seen="; ".join(f"{name}: {disabled[name]}" for name in names),
            mend="When they are back: "
            + ", ".join(f"`monitor deliveries enable {name}`" for name in names),
        )
