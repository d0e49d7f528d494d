"""The page and the API say what stands in the database, and nothing dangerous with it."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import Engine, text
from starlette.testclient import TestClient

from monitor.alert.policy import transition
from monitor.settings import PostgresSettings
from monitor.store.chunks import advance_offsets
from monitor.store.database import connect, transaction
from monitor.store.discoveries import save_discoveries
from monitor.store.packs import register_pack
from monitor.store.progress import keep_log_ends
from monitor.store.workers import heartbeat, record_canary_run
from monitor.values.alerts import AlertState, Condition
from monitor.values.evidence import Discoveries, StreamEvidence
from monitor.values.fidelity import Fidelity
from monitor.values.progress import LogEnd
from monitor.values.prompts import OffsetSpan
from monitor.values.scores import CanaryRun
from monitor.web.chart import HEIGHT, WIDTH, drift_chart
from tests.store.builders import chunk, keep, scored
from tests.web.scene import LINEAGE, NOW, PACK, announce, feature, firing

ClientOf = Callable[..., TestClient]
OTHER = "cd" * 32


def charts(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_page_shows_drift_state_and_alerts(watched: Engine, client_of: ClientOf) -> None:
    announce(watched, firing("toxic rose by 1.5 deviations"))
    page = client_of(watched).get("/").text
    assert "<title>1 firing" in page
    assert "toxic rose by 1.5 deviations" in page
    assert "what assistant means" in page
    assert "no approved baseline" in page
    assert "reproduced" in page
    assert "not reproduced" not in page
    assert "<b>1</b>" in page  # workers
    assert page.index("<h3>toxic") < page.index("<h3>assistant"), "the most drifted comes first"
    lines = [svg.find("path[@class='line']") for svg in charts(page)]
    assert len(lines) == 2
    for line in lines:
        assert line is not None
        places = re.findall(r"[\d.]+,[\d.]+", line.get("d", ""))
        assert 15 < len(places) < 40, "three of the last 24 hours, a point per slice"


def test_page_says_how_many_prompts_were_replayed_as_they_were_served(
    watched: Engine, client_of: ClientOf
) -> None:
    assert client_of(watched).get("/api/overview").json()["fidelity"] is None
    assert "no token counts in the records" in client_of(watched).get("/").text
    found = [Fidelity(prompt_difference=-(n == 0), answer_difference=0) for n in range(40)]
    rows = [
        replace(scored(n, [0.0, 0.0], at=NOW - timedelta(minutes=3)), fidelity=one)
        for n, one in enumerate(found)
    ]
    keep(watched, replace(chunk(rows, start=0, end=40), lineage=LINEAGE, buckets=()))
    page = client_of(watched).get("/").text
    assert "<b>97.5 %</b><small>of 40 prompts" in page
    told = client_of(watched).get("/api/overview").json()["fidelity"]
    assert (told["n"], told["share"]) == (40, 0.025)
    assert told["mismatches"] == [{"verdict": "prompt", "n": 1, "usual": -1, "usual_n": 1}]


def test_canaries_of_a_worker_that_is_gone_are_not_told_as_failed(
    watched: Engine, client_of: ClientOf
) -> None:
    """As in an evaluation, where a live worker vouches and nobody else."""
    gone = CanaryRun(
        worker_id="w-gone",
        ran_at=NOW - timedelta(minutes=50),
        lineage=LINEAGE,
        largest_deviation=4.0,
        noise_floor=0.05,
        reproduced=False,
    )
    with transaction(watched) as c:
        record_canary_run(c, gone)
    assert "not reproduced" not in client_of(watched).get("/").text
    overview = client_of(watched).get("/api/overview").json()
    assert [run["worker_id"] for run in overview["canaries"]] == ["w-1"]


def test_a_resolved_alert_shows_what_it_reads_now(watched: Engine, client_of: ClientOf) -> None:
    began = firing("toxic rose over 15m: mean +0.98 SD")
    reading = {"n": 900, "shift": 0.05, "tail_rate": 0.01, "psi": 0.0, "ks": 0.0, "evidence": 0.0}
    calm = Condition(
        dedupe_key=began.dedupe_key,
        rule=began.rule,
        kind="drift",
        severity="warning",
        active=False,
        summary="toxic is inside its thresholds over 15m",
        labels=began.labels,
        details={"window": "15m", "readings": {"15m": reading}},
    )
    then = {"event": "fired", "window": "15m", "shift": {"value": 0.98}, "summary": began.summary}
    began = replace(began, details={"when_fired": then})
    ended, _ = transition(began, calm, NOW + timedelta(minutes=1), silenced=False)
    assert ended is not None
    announce(watched, ended)
    page = client_of(watched).get("/").text
    assert "toxic is back inside its thresholds over 15m: shift now +0.05 SD, was +0.98" in page
    assert "toxic rose" not in page


def test_the_model_that_answers_look_like_stands_beside_the_cause(
    watched: Engine, client_of: ClientOf
) -> None:
    assert "answers look like" not in client_of(watched).get("/").text
    witness = {"identity": {"finding": "moved", "looks_like": {"name": "revision-b"}}}
    with transaction(watched) as c:
        c.execute(
            text("UPDATE monitor_data.drifts SET witnesses = CAST(:witness AS jsonb)"),
            {"witness": json.dumps(witness)},
        )
    client = client_of(watched)
    assert "answers look like <b>revision-b</b>" in client.get("/").text


def test_what_changed_since_the_approval_is_listed_with_its_bound(
    watched: Engine, client_of: ClientOf
) -> None:
    assert "Changed at some time" not in client_of(watched).get("/").text
    streams = (
        StreamEvidence(family="drift", segment="all", feature="toxic", since=NOW, log_e=9.25),
        StreamEvidence(family="identity", segment="all", served="m@<1>", since=NOW, log_e=9.0),
        StreamEvidence(family="twin", segment="all", feature="calm", since=NOW, log_e=0.0),
    )
    made = Discoveries(streams=streams, rate=0.05, line=8.5)
    with transaction(watched) as c:
        save_discoveries(c, PACK, made, NOW - timedelta(minutes=1))
        c.execute(text("UPDATE monitor_data.drifts SET log_e = 9.25, log_e_line = 8.5"))
    client = client_of(watched)
    page = client.get("/").text
    assert "2 of 3 streams" in page
    assert "At most 5 % of such a list" in page
    assert "drift: toxic" in page
    assert "identity: m@&lt;1&gt;" in page
    assert "calm" not in page.split("Changed at some time")[1].split("<h2>Drift")[0]
    assert "<b>discovery</b>" in page
    found = client.get("/api/overview").json()["discoveries"]
    assert [one["family"] for one in found] == ["drift", "identity"]


def test_page_of_an_empty_database_says_what_is_missing(
    database: Engine, client_of: ClientOf
) -> None:
    answer = client_of(database).get("/")
    assert answer.status_code == 200
    assert "no worker has started" in answer.text


def test_names_from_traffic_are_escaped(watched: Engine, client_of: ClientOf) -> None:
    announce(watched, firing("<script>alert(1)</script> in route=/<chat>"))
    page = client_of(watched).get("/", params={"segment": 'route=/<chat>"'}).text
    assert "<script" not in page
    assert "/<chat>" not in page
    assert "route=/&lt;chat&gt;" in page


@pytest.mark.parametrize("path", ["/", "/dashboard.css", "/api/overview", "/livez", "/nowhere"])
def test_every_answer_forbids_script_frames_and_caching(
    database: Engine, client_of: ClientOf, path: str
) -> None:
    headers = client_of(database).get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'self'")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


def test_page_needs_nothing_from_elsewhere(watched: Engine, client_of: ClientOf) -> None:
    page = client_of(watched).get("/").text
    assert set(re.findall(r'(?:href|src)="([^"]+)"', page)) == {
        *("dashboard.css", "api/overview", "api/drift", "api/alerts", "api/features"),
    }
    assert "style=" not in page


def test_choosing_another_window_and_segment(watched: Engine, client_of: ClientOf) -> None:
    page = client_of(watched).get("/", params={"window": "900", "segment": "route=/<chat>"}).text
    assert '<option value="900" selected>15 min' in page
    assert re.search(r"<option selected>\s*route=/&lt;chat&gt;", page)
    assert "not evaluated in this period" not in page
    none = client_of(watched).get("/", params={"segment": "unknown"}).text
    assert none.count("not evaluated in this period") == 2


def test_drift_api_takes_the_last_evaluation_of_each_slice(
    watched: Engine, client_of: ClientOf
) -> None:
    answer = client_of(watched).get("/api/drift", params={"feature": "toxic", "hours": 3}).json()
    assert answer["window_seconds"] == 3600
    series = answer["drift"]["toxic"]
    assert set(answer["drift"]) == {"toxic"}
    assert len(series) == 180
    assert series[-1]["shift"] == pytest.approx(1.5 - 1 / 120)
    assert series[-1]["evaluated_at"].startswith("2026-03-14T11:59:00")
    assert series[0]["shift"] == pytest.approx(0.0)
    assert series[-1]["tail_ratio_high"] is None, "JSON knows no infinity"
    day = client_of(watched).get("/api/drift", params={"feature": "toxic", "hours": 24}).json()
    assert len(day["drift"]["toxic"]) in (23, 24)
    assert day["drift"]["toxic"][-1] == series[-1]


def test_overview_api(watched: Engine, client_of: ClientOf) -> None:
    announce(watched, firing("toxic rose"))
    answer = client_of(watched).get("/api/overview").json()
    assert answer["pack"]["pack_id"] == PACK
    assert [worker["worker_id"] for worker in answer["ingest"]["workers"]] == ["w-1"]
    assert answer["canaries"][0]["largest_deviation"] == pytest.approx(0.0012)
    assert [alert["summary"] for alert in answer["alerts"]] == ["toxic rose"]
    assert answer["deliveries"] == [
        {
            "endpoint": "pager",
            "waiting": 1,
            "oldest": answer["deliveries"][0]["oldest"],
            "disabled_at": None,
        }
    ]


def test_how_far_what_is_read_lies_behind(watched: Engine, client_of: ClientOf) -> None:
    quiet = client_of(watched).get("/api/overview").json()["ingest"]
    assert (quiet["lag_records"], quiet["delay_seconds"]) == (None, None)
    assert re.search(r"lag</span><b>–</b>", client_of(watched).get("/").text)
    told = LogEnd(topic="prompts", partition=3, begins_at=0, log_end=900, asked_at=NOW)
    span = OffsetSpan(topic="prompts", partition=3, start=0, end=850, log_end=900)
    with transaction(watched) as c:
        advance_offsets(c, "monitor", "w-1", [span], {("prompts", 3): NOW - timedelta(minutes=40)})
        keep_log_ends(c, "monitor", "w-1", [told], NOW)
    ingest = client_of(watched).get("/api/overview").json()["ingest"]
    assert (ingest["lag_records"], ingest["delay_seconds"]) == (50, 2_400)
    assert ingest["slowest"] == "prompts/3"
    page = client_of(watched).get("/").text
    assert re.search(r"delay</span><b>40 min</b>\s*<small>prompts/3", page)


def test_what_a_live_worker_remarks_is_on_the_page_and_in_readyz_once(
    watched: Engine, client_of: ClientOf
) -> None:
    said = "The dead-letter topic letters is not told, the table has all dead letters: <refused>"
    with transaction(watched) as c:
        heartbeat(c, "w-2", "monitor", PACK, "running", NOW, [said])
        heartbeat(c, "w-3", "monitor", PACK, "running", NOW, [said])
        heartbeat(c, "w-4", "monitor", PACK, "running", NOW - timedelta(hours=2), ["long ago"])
        heartbeat(c, "w-5", "monitor", PACK, "stopped", NOW, ["not any more"])
    client = client_of(watched)
    assert client.get("/readyz").json()["remarks"] == [said]
    assert client.get("/api/overview").json()["remarks"] == [said]
    page = client.get("/").text
    assert page.count("The dead-letter topic letters is not told") == 1
    assert "long ago" not in page
    assert "not any more" not in page


def test_two_live_packs_are_told_and_either_can_be_looked_at(
    watched: Engine, client_of: ClientOf
) -> None:
    client = client_of(watched)
    assert client.get("/readyz").json()["remarks"] == []
    assert "packs have live workers" not in client.get("/").text
    with transaction(watched) as c:
        register_pack(c, OTHER, "newer", {}, [feature("reckless")])
        heartbeat(c, "w-2", "monitor", OTHER, "running", NOW)
    ready = client.get("/readyz")
    assert ready.status_code == 200, "a rollout makes no process unready"
    (said,) = ready.json()["remarks"]
    assert said.startswith(f"2 packs have live workers: personas ({PACK[:12]}, 1 worker), newer (")
    page = client.get("/").text
    assert said in page
    assert "what toxic means" in page, "the page stays with the pack that was there first"
    assert "what reckless means" not in page
    other = client.get("/", params={"pack": OTHER}).text
    assert f'<option value="{OTHER}" selected>' in other
    assert "what reckless means" in other
    assert "what toxic means" not in other
    answer = client.get("/api/overview").json()
    assert {pack["pack_id"]: pack["live_workers"] for pack in answer["packs"]} == {
        PACK: 1,
        OTHER: 1,
    }
    assert answer["several_packs"] == said
    features = client.get("/api/features", params={"pack": OTHER[:6]}).json()["features"]
    assert [found["name"] for found in features] == ["reckless"]
    assert set(client.get("/api/drift", params={"pack": OTHER}).json()["drift"]) == {"reckless"}
    refused = client.get("/api/drift", params={"pack": "nowhere"})
    assert (refused.status_code, refused.json()["error"][:4]) == (400, "pack")


def test_an_alert_that_nothing_watches_is_shown_and_not_among_the_resolved(
    watched: Engine, client_of: ClientOf
) -> None:
    ended = replace(
        firing("no longer watched: no worker of pack p"),
        state=AlertState.UNWATCHED,
        unwatched_at=NOW - timedelta(hours=2),
    )
    announce(watched, ended)
    answer = client_of(watched).get("/api/overview").json()
    assert [alert["state"] for alert in answer["unwatched"]] == ["unwatched"]
    assert answer["unwatched"][0]["resolved_at"] is None
    assert (answer["alerts"], answer["resolved"]) == ([], [])
    page = client_of(watched).get("/").text
    assert "<td>unwatched</td>" in page
    assert "no longer watched: no worker of pack p" in page


def test_features_api_gives_the_packs_order(watched: Engine, client_of: ClientOf) -> None:
    features = client_of(watched).get("/api/features").json()["features"]
    assert [(f["name"], f["expected"]) for f in features] == [
        ("toxic", "rises"),
        ("assistant", "falls"),
    ]


def test_alerts_api_puts_firing_first_and_forgets_old_ones(
    watched: Engine, client_of: ClientOf
) -> None:
    for name, hours in (("recent", 2), ("old", 40)):
        resolved = replace(
            firing(name, alert_id=name),
            state=AlertState.RESOLVED,
            resolved_at=NOW - timedelta(hours=hours),
        )
        announce(watched, resolved)
    announce(watched, firing("now"))
    client = client_of(watched)
    assert [a["summary"] for a in client.get("/api/alerts").json()["alerts"]] == ["now", "recent"]
    longer = client.get("/api/alerts", params={"hours": 72}).json()["alerts"]
    assert [a["summary"] for a in longer] == ["now", "recent", "old"]


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"hours": "many"}, "hours"),
        ({"hours": "nan"}, "hours"),
        ({"hours": "100000"}, "hours"),
        ({"window": "0"}, "window"),
        ({"feature": "no such"}, "feature"),
        ({"segment": "a\0b"}, "segment"),
    ],
)
def test_wrong_parameter_is_named(
    watched: Engine, client_of: ClientOf, parameters: dict[str, str], named: str
) -> None:
    answer = client_of(watched).get("/api/drift", params=parameters)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(named)


@pytest.mark.parametrize("path", ["/", "/api/overview", "/api/drift", "/api/alerts"])
def test_only_reading_is_possible(database: Engine, client_of: ClientOf, path: str) -> None:
    client = client_of(database)
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert client.request(method, path).status_code == 405


def test_queries_run_in_a_read_only_transaction(database: Engine) -> None:
    from monitor.errors import DatabaseUnavailable
    from monitor.store.overview import reading

    with pytest.raises(DatabaseUnavailable, match="read-only"), reading(database) as c:
        c.execute(text("DELETE FROM monitor_data.alerts"))


def test_database_that_does_not_answer_is_503_and_names_no_host(client_of: ClientOf) -> None:
    nowhere = connect(PostgresSettings(url="postgresql+psycopg://who:pw@127.0.0.1:1/none"))
    client = client_of(nowhere)
    for path in ("/", "/api/overview"):
        answer = client.get(path)
        assert answer.status_code == 503
        assert "127.0.0.1" not in answer.text
        assert "who" not in answer.text
    assert client.get("/livez").status_code == 200, "a dependency never decides liveness"


def test_drift_series_reads_few_rows_of_a_long_history(watched: Engine) -> None:
    """The plan probes an index per slice, and reads only the end of each."""
    from monitor.store import overview

    with watched.begin() as c:
        c.execute(
            text("""
                INSERT INTO monitor_data.drifts
                SELECT (drift).* FROM (
                    SELECT jsonb_populate_record(d, jsonb_build_object(
                        'evaluated_at', d.evaluated_at - copy.number * interval '3 hours',
                        'window_start', d.window_start - copy.number * interval '3 hours',
                        'window_end', d.window_end - copy.number * interval '3 hours')) AS drift
                    FROM monitor_data.drifts AS d, generate_series(1, 8) AS copy (number)
                    WHERE segment = 'all') AS copies
            """)
        )
    with watched.connect() as c:
        c.execute(text("ANALYZE monitor_data.drifts"))
        plan = "\n".join(
            c.execute(
                text("EXPLAIN ANALYZE " + str(overview._DRIFT_SERIES)),
                {
                    "pack_id": PACK,
                    "features": ["toxic", "assistant"],
                    "segment": "all",
                    "window": timedelta(hours=1),
                    "since": NOW - timedelta(days=1),
                    "until": NOW,
                    "step": timedelta(days=1) / 180,
                    "looked_at": timedelta(minutes=15),
                },
            ).scalars()
        )
    assert "Seq Scan on drifts" not in plan, plan
    assert "Index" in plan


def test_chart_breaks_where_evaluations_are_missing_and_stays_inside() -> None:
    since, step = NOW - timedelta(hours=6), timedelta(minutes=2)
    minutes = [*range(300, 200, -2), *range(120, 0, -2)]
    points = [
        {
            "evaluated_at": NOW - timedelta(minutes=minute),
            "shift": 4.0 if minute < 100 else -0.1,
            "shift_low": None if minute < 50 else -0.2,
            "shift_high": 4.5,
        }
        for minute in minutes
    ]
    made = drift_chart(points, since, NOW, step)
    assert made.line.count("M") == 2
    for across, up in re.findall(r"([\d.-]+),([\d.-]+)", made.line + made.band):
        assert 0 <= float(across) <= WIDTH
        assert 0 <= float(up) <= HEIGHT
    assert made.up[1].label == "+4.5"
    quiet = drift_chart([], since, NOW, step)
    assert (quiet.line, quiet.band) == ("", "")
    assert [tick.label for tick in quiet.up] == ["-0.5", "+0.5"]
