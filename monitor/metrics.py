"""Every metric, declared once in one table, with what an operator does about it.

``docs/metrics.md`` is `metrics_page()`. The module, and `Metrics.__init__` in it, is long because it is that table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from monitor import __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row of the table. ``action`` says what an operator does about it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    action: str


_CHUNK_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_CALL_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30)


class Metrics:
    """Every metric, each declared once; ``table`` holds the rows in the order of the documentation."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._rows: list[Metric] = []

        self.records = self._counter(
            "monitor_records_total",
            ("outcome",),
            "Prompts and unreadable records taken from the topic, by what became of them: scored, "
            "dead or skipped; the view of ingest counts holds the reasons.",
            action="No growth while the topic grows: look at lag and at the worker's log. Mostly skipped: "
            "check ingest.sampling_rate and ingest.models.",
        )
        self.prompts_scored = self._counter(
            "monitor_prompts_scored_total",
            (),
            "Prompts replayed, scored and committed.",
            action="Its rate is the monitor's throughput: scale workers when it stays below the sampled traffic.",
        )
        self.replays_compared = self._counter(
            "monitor_replays_compared_total",
            ("verdict",),
            "Scored prompts whose record carries the server's token counts, by what the replay's own say: "
            "same, or other tokens of the prompt, or of the answer alone.",
            action="More than a few in a hundred not same: what is replayed is not what was served. The view "
            "replay_fidelity shows by how many tokens; mend replay.chat_template or template_options.",
        )
        self.answers_weighed = self._counter(
            "monitor_answers_weighed_total",
            ("outcome",),
            "Answers of the share identity.share: weighed by the whole copy (sampled, greedy), or why not.",
            action="Mostly sampling_unknown: log the sampling parameters, approve a baseline that estimates them, or set "
            "identity.temperature; mostly other_tokens: see replay_fidelity.",
        )
        self.twins = self._counter(
            "monitor_twins_total",
            ("outcome",),
            "Prompts of the share twin.share: answered by the copy too and compared (paired), or why not.",
            action="Mostly sampling_unknown: log the sampling parameters, or set identity.temperature.",
        )
        self.fields_left_out = self._counter(
            "monitor_fields_left_out_total",
            ("field",),
            "Fields of scored prompts' records that held nothing usable and were passed over, by path.",
            action="An id or a time that is always left out: mend the sender, or conversations and windows rest "
            "on less than it knows. The view left_out names the prompts.",
        )
        self.dead_letters = self._counter(
            "monitor_dead_letters_total",
            ("reason",),
            "Records that could not be read or replayed.",
            action="Read the view dead_letters for topic, offset and reason; a jump after a deploy upstream "
            "is a changed record format.",
        )
        self.dead_letters_waiting = self._gauge(
            "monitor_dead_letters_waiting",
            (),
            "Dead letters of this worker that the table holds and the dead-letter topic has not been told yet.",
            action="Above 0 for minutes: kafka.dead_letter_topic is away or may not be written; the page and the "
            "log say why.",
        )
        self.dead_letters_untold = self._counter(
            "monitor_dead_letters_untold_total",
            (),
            "Dead letters that the dead-letter topic is never told: it was away for too long.",
            action="Whoever mends records by the topic reads these in the view dead_letters.",
        )
        self.halves_waiting = self._gauge(
            "monitor_halves_waiting",
            (),
            "Parts of exchanges that wait in this worker for the rest (KServe, an event per message).",
            action="Near ingest.join.halves the oldest are given up (skipped:join_full in the view of ingest "
            "counts): raise it, or see in docs/records.md why the parts do not meet.",
        )
        self.chunk_seconds = self._histogram(
            "monitor_chunk_seconds",
            ("stage",),
            "Time of one chunk in a stage: fetch, prepare, replay or store.",
            buckets=_CHUNK_SECONDS,
            action="Replay should dominate. A slow store: look at Postgres; a slow fetch with lag: at Kafka.",
        )
        self.tokens = self._counter(
            "monitor_tokens_total",
            ("kind",),
            "Tokens run through the model (run), and spared by running identical prompts (saved_dedupe) and "
            "shared prefixes (saved_prefix) once, and by prefixes that an earlier chunk ran (saved_kept).",
            action="Its rate against the machine's own says whether the replay is slow or the prompts are long.",
        )
        self.prefixes = self._counter(
            "monitor_prefixes_total",
            ("outcome",),
            "Prefixes that prompts share, by whether they were kept from an earlier chunk: found or missed.",
            action="Mostly missed with monitor_prefix_cache_bytes at its limit: raise replay.prefix_cache_mb.",
        )
        self.prefix_bytes = self._gauge(
            "monitor_prefix_cache_bytes",
            (),
            "Memory of the prefixes that are kept from chunk to chunk.",
            action="At most replay.prefix_cache_mb; lower it where memory runs out.",
        )
        self.batch_halvings = self._counter(
            "monitor_batch_halvings_total",
            (),
            "Batches split because the device ran out of memory.",
            action="Lower replay.batch_tokens when it keeps growing: every split is work done twice.",
        )
        self.lag = self._gauge(
            "monitor_lag_records",
            ("topic", "partition"),
            "Records between the stored offset and the partition's end, for partitions of this worker. The "
            "broker is asked for the end every 15 seconds, also while reading is held up; no sample before it is known.",
            action="Growing: add workers (up to the number of partitions), or lower ingest.sampling_rate.",
        )
        self.delay = self._gauge(
            "monitor_delay_seconds",
            ("topic", "partition"),
            "How far what is read of a partition lies behind now, by the records' own time; 0 when all is "
            "read. Told by the watcher that leads, also of workers that are dead.",
            action="Growing: add workers (up to the number of partitions), or lower ingest.sampling_rate; one "
            "partition alone: look at the worker that owns it (view ingest_lag).",
        )
        self.evaluation_behind = self._gauge(
            "monitor_evaluation_behind_seconds",
            (),
            "How much earlier the windows of the last evaluation end because a partition is read late.",
            action="Above 0 drift is seen so much later; at drift.wait_for_late the detectors miss what comes "
            "later still. See monitor_delay_seconds.",
        )
        self.offset_gaps = self._counter(
            "monitor_offset_gaps_total",
            ("topic",),
            "Offsets below the start of the log when they were to be read: its retention was too short.",
            action="Records were lost before they were read: raise the topic's retention, catch up faster.",
        )
        self.behind_transactions = self._gauge(
            "monitor_partitions_behind_a_transaction",
            (),
            "Partitions of this worker that are read up to a transaction which has been open for a minute.",
            action="Its producer must commit or abort it: `kafka-transactions.sh find-hanging` names it, the page "
            "the partition.",
        )
        self.partitions_stalled = self._counter(
            "monitor_partitions_stalled_total",
            ("topic",),
            "Partitions that stood still for a minute while records that may be read waited in their log.",
            action="A new connection is tried once by itself. Growing: restart the worker, and look at the "
            "partition's leader.",
        )
        self.stale_chunks = self._counter(
            "monitor_stale_chunks_total",
            (),
            "Chunks discarded because another worker had stored their offsets.",
            action="A few after each rebalance are normal; a steady flow means that monitors of two clusters share "
            "kafka.group_id and Postgres, or rebalances that never end.",
        )
        self.rebalances = self._counter(
            "monitor_rebalances_total",
            (),
            "Changes of this worker's partitions.",
            action="Frequent ones: raise kafka.session_timeout_ms, look for restarting workers.",
        )
        self.canary_deviation = self._gauge(
            "monitor_canary_deviation",
            (),
            "Largest deviation of the last canary replay, in calibration deviations.",
            action="Above pack.canary_tolerance the copy is not the instrument that the pack was made with: "
            "compare dtype, attention, device and model files.",
        )
        self.canary_reproduced = self._gauge(
            "monitor_canary_reproduced",
            (),
            "1 when the last canary replay gave the recorded readings, 0 when it did not.",
            action="0 holds drift alerts (instrument shift): restore the model or device, or rebuild the "
            "pack and its baseline.",
        )
        self.server_canary_answers = self._counter(
            "monitor_server_canary_answers_total",
            ("outcome",),
            "Questions that the served endpoint was asked (server_canaries), by what became of the answer.",
            action="Mostly compared. unreachable, refused: the way to it, or its key; other_prompt: its template.",
        )
        self.server_canary_evidence = self._gauge(
            "monitor_server_canary_evidence",
            (),
            "Evidence that the served model is not the copy, over its limit, after this process's last round.",
            action="At 1 or above the rule server_changed fires; the view server_canaries shows the rounds.",
        )
        self.pack_info = self._gauge(
            "monitor_pack_info",
            ("pack_id", "pack_name", "model_id", "dtype", "device"),
            "1 for the pack and the model copy in use.",
            action="Two different values across workers: finish the rollout, scores of the two do not compare.",
        )
        self.drift_shift = self._gauge(
            "monitor_drift_shift",
            ("pack_id", "feature", "window"),
            "Latest standardised mean shift of a feature against its baseline, segment all.",
            action="A view of the trend only: alerts rest on confidence bounds and stand in SQL.",
        )
        self.drift_adjusted = self._gauge(
            "monitor_drift_adjusted",
            ("pack_id", "feature", "window"),
            "1 while the figures of drift are of scores given the prompt, 0 while they are of raw ones; segment all.",
            action="0 beside a baseline that adjusts: it is new, or workers of an earlier release score.",
        )
        self.drift_tail_ratio = self._gauge(
            "monitor_drift_tail_ratio",
            ("pack_id", "feature", "window"),
            "Latest rate of tail prompts against the baseline's, segment all.",
            action="Well above 1 while the shift is small: few answers changed much, by a persona or by another "
            "kind of text; read the strongest prompts of the feature.",
        )
        self.packs_live = self._gauge(
            "monitor_packs_live",
            (),
            "Packs that a live worker scores with, as the watcher saw it last.",
            action="2 for the length of a rollout. For longer: finish it, or mean it; each pack is watched "
            "apart and needs a baseline of its own.",
        )
        self.evaluation_seconds = self._histogram(
            "monitor_evaluation_seconds",
            (),
            "Time of one evaluation of all windows of all watched packs.",
            buckets=_CALL_SECONDS,
            action="Near drift.evaluate_every: fewer windows or segments, or a faster Postgres.",
        )
        self.job_failures = self._counter(
            "monitor_job_failures_total",
            ("job",),
            "Watcher jobs that raised.",
            action="Read the log of that job; drift is not evaluated while evaluate fails.",
        )
        self.watcher_active = self._gauge(
            "monitor_watcher_active",
            (),
            "1 in the process that holds the watcher's lease.",
            action="The sum over replicas must be 1: at 0 nobody evaluates drift.",
        )
        self.watcher_leads = self._gauge(
            "monitor_watcher_leads",
            (),
            "1 while some process holds the watcher's lease, as every process sees it in the database.",
            action="At 0 nobody evaluates drift: look at the watchers' logs (watcher.does_not_lead) and /readyz.",
        )
        self.evaluation_age = self._gauge(
            "monitor_evaluation_age_seconds",
            (),
            "Since an evaluation of drift was last stored, as every process sees it; NaN before the first.",
            action="Beyond some of drift.evaluate_every nothing is watched: look at the watcher's log and at "
            "monitor_job_failures_total. The silence rule not_evaluated tells of it too.",
        )
        self.clock_difference = self._gauge(
            "monitor_clock_difference_seconds",
            (),
            "How far this machine's clock is ahead of the database's, at least; all times are the database's.",
            action="Beyond drift.clock_tolerance a watcher does not lead: set the clock that is wrong (NTP).",
        )
        self.pulses = self._counter(
            "monitor_pulses_total",
            ("outcome",),
            "Posts to alerts.pulse_url, whose receiver pages when they stop: sent, failed, or withheld because "
            "drift is not evaluated.",
            action="Failed: mend the URL or the way to it. Withheld: see monitor_evaluation_age_seconds.",
        )
        self.alerts_open = self._gauge(
            "monitor_alerts_open",
            ("severity",),
            "Alerts that fire now.",
            action="Above 0: `monitor alerts list`, or the dashboard.",
        )
        self.alert_events = self._counter(
            "monitor_alert_events_total",
            ("type",),
            "Events put into the outbox.",
            action="Many detected and resolved in turn: lengthen the rule's `for` or cooldown. Many detected at "
            "once: one change moves several features and segments, each with an alert of its own.",
        )
        self.deliveries = self._counter(
            "monitor_deliveries_total",
            ("endpoint", "outcome"),
            "Attempts to tell an endpoint, by outcome: delivered, retry, slow_down, refused or gone.",
            action="Anything but delivered: `monitor deliveries list`; mend the endpoint, then "
            "`monitor deliveries replay`.",
        )
        self.deliveries_waiting = self._gauge(
            "monitor_deliveries_waiting",
            (),
            "Deliveries in the outbox that are due or will be tried again.",
            action="Growing while alerts open: the courier does not run, or an endpoint is down.",
        )
        self.delivery_seconds = self._histogram(
            "monitor_delivery_seconds",
            ("endpoint",),
            "Time of one attempt.",
            buckets=_CALL_SECONDS,
            action="Near the endpoint's timeout: answer first and work later, at the receiver.",
        )
        self.retries = self._counter(
            "monitor_retries_total",
            ("dependency",),
            "Waits because a dependency did not answer, or gave up a transaction: database, broker, registry or replay (the server of backend vllm).",
            action="The work is repeated and nothing is lost; look at the dependency when it keeps growing.",
        )
        self.heartbeat_age = self._gauge(
            "monitor_loop_heartbeat_age_seconds",
            ("loop",),
            "Time since a loop last went round, at the time of the scrape.",
            action="Above web.live_within the process answers /livez with 503, for the platform to restart it.",
        )
        self.build_info = self._gauge(
            "monitor_build_info",
            ("version",),
            "1 for the version that runs.",
            action="Two versions at once: a rollout is under way, or stuck.",
        )

        self.build_info.labels(version=__version__).set(1)
        # Not known until a canary was replayed; 0 would say "not reproduced" in processes without one.
        for gauge in (self.canary_deviation, self.canary_reproduced, self.server_canary_evidence):
            gauge.set(math.nan)
        self.table: Final = tuple(self._rows)

    def _counter(self, name: str, labels: Sequence[str], help: str, *, action: str) -> Counter:
        self._declare("counter", name, labels, help, action)
        return Counter(name, help, labels, registry=self.registry)

    def _gauge(self, name: str, labels: Sequence[str], help: str, *, action: str) -> Gauge:
        self._declare("gauge", name, labels, help, action)
        return Gauge(name, help, labels, registry=self.registry)

    def _histogram(
        self, name: str, labels: Sequence[str], help: str, *, buckets: Sequence[float], action: str
    ) -> Histogram:
        self._declare("histogram", name, labels, help, action)
        return Histogram(name, help, labels, registry=self.registry, buckets=buckets)

    def _declare(
        self,
        kind: Literal["counter", "gauge", "histogram"],
        name: str,
        labels: Sequence[str],
        help: str,
        action: str,
    ) -> None:
        row = Metric(name=name, kind=kind, labels=tuple(labels), help=help, action=action)
        self._rows.append(row)


METRICS: Final = Metrics()


def metrics_page() -> str:
    """The text of ``docs/metrics.md``."""
    lines = [
        "# Metrics",
        "",
        "Served at `/metrics` by every process. Beside these, the usual `process_*` and `python_info` metrics.",
        "This page is generated from `monitor/metrics.py`; a test holds the two equal.",
        "",
        "| metric | kind | labels | meaning | what to do about it |",
        "|---|---|---|---|---|",
    ]
    for row in METRICS.table:
        labels = ", ".join(f"`{label}`" for label in row.labels) or "–"
        lines.append(f"| `{row.name}` | {row.kind} | {labels} | {row.help} | {row.action} |")
    return "\n".join(lines) + "\n"
