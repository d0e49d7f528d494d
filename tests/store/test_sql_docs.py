"""docs/sql.md: every query runs as the read-only role, and the dashboard's are cheap."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection, Engine, exc, text

from monitor.drift import twin
from monitor.drift.identity import taken_in
from monitor.settings import PostgresSettings
from monitor.store.alerts import save_alert
from monitor.store.alternatives import new_likenesses, save_alternatives
from monitor.store.baselines import approve_baseline, save_baseline
from monitor.store.buckets import roll_up
from monitor.store.database import connect, migrate, transaction
from monitor.store.discoveries import save_discoveries
from monitor.store.drift import save_drifts
from monitor.store.identity import new_identity, save_identity
from monitor.store.outbox import Tried, claim_deliveries, record_attempts
from monitor.store.partitions import ensure_partitions
from monitor.store.server_canaries import save_answers, save_questions, save_round
from monitor.store.twins import save_twins
from monitor.store.windows import new_buckets, read_windows
from monitor.store.workers import record_canary_run
from monitor.values.alerts import AlertState, Attempt, DeliveryState, Outcome
from monitor.values.drift import Bound, TailGrowth
from monitor.values.evidence import Discoveries, StreamEvidence
from monitor.values.fidelity import Fidelity
from monitor.values.prompts import DeadLetter, DeadReason, RecordKey, ServedCounts
from monitor.values.scores import CanaryRun
from monitor.values.server_canaries import (
    AnswerOutcome,
    CanaryAnswer,
    Expected,
    QuestionSet,
    ServerRound,
)
from tests.store.builders import (
    LINEAGE,
    PACK,
    alert,
    baseline,
    chunk,
    event,
    keep,
    known_pack,
    series,
    surprise,
)
from tests.store.builders import drift as comparison

PAGE = (Path(__file__).parents[2] / "docs" / "sql.md").read_text(encoding="utf-8")
SECTIONS = [part.partition("\n") for part in re.split(r"^### ", PAGE, flags=re.M)[1:]]
QUERIES = {
    question: body.partition("```sql")[2].partition("\n")[2].partition("```")[0]
    for question, _, body in SECTIONS
    if "```sql" in body
}
DASHBOARD = {
    question: QUERIES[question] for question, _, body in SECTIONS if "```sql dashboard" in body
}
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
NOW = datetime.now(UTC)

pytestmark = pytest.mark.slow  # nine days of data, in one database for all


@pytest.fixture(scope="module")
def populated(postgres_server: Any) -> Iterator[Engine]:
    """A database with nine days of data up to now, most of it in the last days."""
    name = "monitor_sql_docs"
    admin = connect(PostgresSettings(url=postgres_server.render_as_string(hide_password=False)))
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        c.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        c.execute(text(f"CREATE DATABASE {name}"))
    url = postgres_server.set(database=name).render_as_string(hide_password=False)
    migrate(PostgresSettings(url=url))
    engine = connect(PostgresSettings(url=url))
    fill(engine)
    yield engine
    engine.dispose()
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        c.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def ask_the_server(c: Connection) -> None:
    """A day of rounds to the served endpoint, every answer beyond tolerance."""
    chosen = Expected(
        question="open:bored",
        border=True,
        first="a",
        second="b",
        margin=0.1,
        tolerance=0.05,
        answer="a",
        scores=np.array([0.1, np.nan], dtype=np.float32),
    )
    save_questions(c, QuestionSet(set_id="s", pack_id=PACK, questions=(chosen,)))
    for hour in range(24):
        at = NOW - hour * DAY / 24 - MINUTE
        answer = CanaryAnswer(
            question="open:bored",
            asked_at=at,
            outcome=AnswerOutcome.COMPARED,
            first="b",
            other_first=True,
            deviation=2.0 + hour,
            nats=0.1,
        )
        save_answers(c, "s", [(answer, 1)])
        save_round(
            c,
            ServerRound(
                pack_id=PACK,
                set_id="s",
                served="tiny",
                asked_at=at,
                asked=1,
                evidence=1.0,
                limit=10.0,
                moved={"toxic": 0.5},
            ),
        )


def fill(engine: Engine) -> None:
    known_pack(engine)
    with transaction(engine) as c:
        for day in range(10):
            ensure_partitions(c, (NOW - day * DAY).date(), 1)
    offset = 0
    for day in range(9, 0, -1):
        at = NOW - day * DAY
        rows = series(1_500, start=offset, at=at, step=DAY / 1_500, seed=day)
        rows = [
            replace(
                row,
                segments=("all", f"route={n % 5}"),
                conversation_hash=bytes([n % 7]),
                scores=row.scores * 2,
                served=ServedCounts(prompt_tokens=10 + n % 2, completion_tokens=20),
                fidelity=Fidelity(prompt_difference=-(n % 2), answer_difference=0),
                left_out=("response.created",) if n % 3 == 0 else (),
                weighed=surprise(n % 7 - 3.0) if n % 10 == 0 else None,
                twin=row.scores if n % 10 == 1 else None,
            )
            for n, row in enumerate(rows)
        ]
        letters = [
            DeadLetter(
                key=RecordKey(topic="prompts", partition=0, offset=offset + 1_500 + n),
                recorded_at=at + n * DAY / 6,
                reason=DeadReason.NOT_JSON,
            )
            for n in range(5)
        ]
        keep(
            engine,
            chunk(rows, start=offset, end=offset + 1_505, letters=letters, log_end=offset + 1_600),
        )
        offset += 1_505
    with transaction(engine) as c:
        while roll_up(c, NOW):
            pass
        save_baseline(c, baseline("b1"))
        approve_baseline(c, "b1", "ada", NOW)
        save_drifts(c, history())
        states = taken_in(
            {}, new_identity(c, PACK, NOW - DAY, NOW), until=NOW, begin=NOW - DAY, alone=10.0
        )
        save_identity(c, PACK, states.values())
        bets = taken_in(
            {}, new_likenesses(c, PACK, NOW - DAY, NOW), until=NOW, begin=NOW - DAY, alone=10.0
        )
        save_alternatives(c, PACK, bets.values())
        twins = twin.taken_in(
            {},
            new_buckets(c, PACK, NOW - DAY, NOW, of_twins=True),
            until=NOW,
            begin=NOW - DAY,
            alone=10.0,
            tolerance=0.1,
        )
        save_twins(c, PACK, twins.values())
        changed = StreamEvidence(
            family="drift", segment="all", feature="toxic", since=NOW - DAY, log_e=12.0
        )
        save_discoveries(
            c, PACK, Discoveries(streams=(changed,), rate=0.05, line=3.0), NOW - MINUTE
        )
        ask_the_server(c)
        record_canary_run(
            c,
            CanaryRun(
                worker_id="w",
                ran_at=NOW - MINUTE,
                lineage=LINEAGE,
                largest_deviation=0.01,
                noise_floor=0.05,
                reproduced=True,
            ),
        )
    announce(engine)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        c.execute(text("VACUUM ANALYZE"))


def history() -> Iterator[Any]:
    for step in range(1_500):
        at = datetime.now(UTC) - step * 8 * MINUTE  # NOW may be old by the time this runs
        for feature in ("toxic", "deceptive", "assistant"):
            for hours in (1, 24):
                yield comparison(
                    feature,
                    evaluated_at=at,
                    window_start=at - timedelta(hours=hours),
                    window_end=at,
                    tails=(
                        TailGrowth(
                            share=0.001,
                            threshold=3.5,
                            rate=0.01,
                            baseline_rate=0.0005,
                            ratio=Bound(value=20.0, low=8.0, high=60.0),
                        ),
                    ),
                )


def announce(engine: Engine) -> None:
    for number in range(300):
        at = NOW - timedelta(hours=number)
        state = AlertState.FIRING if number < 2 else AlertState.RESOLVED
        made = replace(
            alert(number, key=f"key-{number}", sequence=1),
            state=state,
            pending_since=at,
            fired_at=at,
            resolved_at=None if number < 2 else at + MINUTE,
        )
        with transaction(engine) as c:
            save_alert(c, made, replace(event(made), created_at=at), ["hook"])
            (delivery,) = claim_deliveries(c, NOW, 1, 60, ["hook"])
            done = number > 3
            attempt = Attempt(
                attempted_at=at + MINUTE,
                outcome=Outcome.DELIVERED if done else Outcome.RETRY,
                status=200 if done else 503,
                latency_seconds=0.2,
            )
            tried = Tried(
                delivery_id=delivery.delivery_id,
                attempt=attempt,
                state=DeliveryState.DELIVERED if done else DeliveryState.WAITING,
                next_at=None if done else NOW + DAY,
            )
            record_attempts(c, [tried])


@pytest.fixture
def reader(populated: Engine) -> Iterator[Connection]:
    with populated.connect() as c:
        c.execute(text("SET ROLE monitor_reader"))
        yield c


def run(c: Connection, query: str) -> Sequence[Any]:
    return c.exec_driver_sql(query.replace("%", "%%").rstrip().rstrip(";")).all()


def test_there_are_many_questions() -> None:
    assert len(QUERIES) >= 12
    assert len(DASHBOARD) >= 8
    assert PAGE.count("```sql") == len(QUERIES)


@pytest.mark.parametrize("question", QUERIES)
def test_every_question_has_an_answer(reader: Connection, question: str) -> None:
    assert run(reader, QUERIES[question]), "the query runs, but finds nothing in a full database"


@pytest.mark.parametrize("question", DASHBOARD)
def test_dashboard_questions_read_little(reader: Connection, question: str) -> None:
    """Nothing large is read from end to end, but the partitions of the last day that were asked for."""
    (plan,) = run(reader, f"EXPLAIN (FORMAT JSON) {DASHBOARD[question]}")
    (whole,) = json.loads(plan[0]) if isinstance(plan[0], str) else plan[0]
    large = set(
        reader.scalars(text("SELECT relname FROM pg_class WHERE reltuples > 600 AND relkind = 'r'"))
    )
    assert len(large) > 20, "the test's own data is too small to show anything"
    asked_for = {f"_p{(NOW - back * DAY):%Y%m%d}" for back in range(2)}
    whole_tables = {
        node["Relation Name"]
        for node in nodes(whole["Plan"])
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] in large
    }
    assert {name for name in whole_tables if name[-10:] not in asked_for} == set()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def index_names(c: Connection, query: str) -> set[str]:
    (plan,) = run(c, f"EXPLAIN (FORMAT JSON) {query}")
    (whole,) = json.loads(plan[0]) if isinstance(plan[0], str) else plan[0]
    return {node["Index Name"] for node in nodes(whole["Plan"]) if "Index Name" in node}


@pytest.mark.parametrize(
    ("question", "index"),
    [
        ("What did every feature say about one prompt?", "prompt_id_idx"),
        ("How did one feature move over the last day?", "drifts_p"),
        ("Which features have drifted furthest at the latest evaluation?", "evaluated_at_idx"),
        ("What was a feature's mean and tail rate, hour by hour, over the last week?", "hourly"),
        ("Is anything wrong now?", "alerts_shown_open_idx"),
    ],
)
def test_the_index_made_for_a_question_is_used(
    reader: Connection, question: str, index: str
) -> None:
    used = index_names(reader, DASHBOARD[question])
    assert any(index in name for name in used), used


def test_strongest_prompts_reads_the_partitions_of_its_hour(populated: Engine) -> None:
    with populated.connect() as c:
        (plan,) = run(
            c,
            f"""
            EXPLAIN (FORMAT JSON)
            SELECT prompt_id FROM monitor_data.scores
            WHERE recorded_at >= '{NOW - DAY - timedelta(hours=1)}' AND recorded_at < '{NOW - DAY}'
                AND 'all' = ANY(segments)
            ORDER BY scores[1] DESC LIMIT 5
            """,
        )
    (whole,) = json.loads(plan[0]) if isinstance(plan[0], str) else plan[0]
    tables = {node["Relation Name"] for node in nodes(whole["Plan"]) if "Relation Name" in node}
    assert all(re.fullmatch(r"scores_p\d{8}", name) for name in tables)
    assert 1 <= len(tables) <= 2


def test_the_reader_may_read_the_views_and_nothing_else(reader: Connection) -> None:
    for forbidden in (
        "SELECT * FROM monitor_data.scores",
        "SELECT content FROM monitor_data.dead_letters",
        "SELECT * FROM monitor_partitions.scores_default",
        "DELETE FROM monitor.alerts",
        "UPDATE monitor.alerts SET severity = 'info'",
        "CREATE TABLE monitor.mine (n int)",
    ):
        with pytest.raises(exc.ProgrammingError, match="permission denied"), reader.begin_nested():
            reader.execute(text(forbidden))


def test_columns_of_the_views_are_the_documented_ones(populated: Engine) -> None:
    documented: dict[str, set[str]] = {}
    for name, _, body in SECTIONS:
        if name in QUERIES:
            continue
        cells = re.findall(r"^\| (`[^|]+) \|", body, re.M)
        documented[name] = {column for cell in cells for column in re.findall(r"`(\w+)`", cell)}
    with populated.connect() as c:
        rows = c.execute(
            text("""
                SELECT table_name, column_name FROM information_schema.columns
                WHERE table_schema = 'monitor'
            """)
        ).all()
    there: dict[str, set[str]] = {}
    for row in rows:
        there.setdefault(row.table_name, set()).add(row.column_name)
    assert documented == there


def test_views_agree_with_the_functions(populated: Engine) -> None:
    """The window that the watcher compares is the one that SQL shows, of rising and falling features."""
    start = (NOW - 2 * DAY).replace(minute=0, second=0, microsecond=0)
    with populated.connect() as c:
        windows = read_windows(
            c, PACK, [(start, start + timedelta(hours=1))], features=[0], segments=["all"]
        )
        falling = read_windows(
            c, PACK, [(start, start + timedelta(hours=1))], features=[2], segments=["all"]
        )
        tails = c.execute(
            text("""
                SELECT feature, tail_count, (
                    SELECT count(*) FROM monitor.feature_scores AS score
                    WHERE in_tail AND score.feature = hour.feature
                        AND recorded_at >= :start AND recorded_at < :end) AS single
                FROM monitor.feature_windows AS hour
                WHERE window_start = :start AND segment = 'all'
            """),
            {"start": start, "end": start + timedelta(hours=1)},
        ).all()
        row = c.execute(
            text("""
                SELECT n, mean, tail_count, histogram FROM monitor.feature_windows
                WHERE window_start = :start AND feature = 'toxic' AND segment = 'all'
            """),
            {"start": start},
        ).one()
        plain = c.execute(
            text("""
                SELECT count(score) AS n, avg(score) AS mean FROM monitor.feature_scores
                WHERE recorded_at >= :start AND recorded_at < :end AND feature = 'toxic'
            """),
            {"start": start, "end": start + timedelta(hours=1)},
        ).one()
    assert windows[0].n == row.n == plain.n > 0
    assert all(tail.tail_count == tail.single for tail in tails)
    by_name = {tail.feature: tail.tail_count for tail in tails}
    assert by_name["toxic"] == windows[0].tail_count
    assert by_name["assistant"] == falling[0].tail_count
    assert row.mean == pytest.approx(windows[0].total / windows[0].n)
    assert row.mean == pytest.approx(plain.mean, rel=1e-6)
    assert row.histogram == windows[0].histogram.tolist()
