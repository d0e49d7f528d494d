"""Workers with different packs on one database: each pack is watched, and no pack ends another's alerts."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import text

from monitor import operate
from monitor.errors import BadInput
from monitor.metrics import METRICS
from monitor.settings import DriftRule, PostgresSettings, Thresholds
from monitor.store.alerts import add_silence, list_alerts
from monitor.store.baselines import retire_baseline
from monitor.store.database import connect, transaction
from monitor.values.alerts import AlertState, Silence
from monitor.watcher import Watcher
from tests.traffic import MINUTE, PACK, Traffic, settings_of

pytestmark = pytest.mark.slow

OTHER = "pack-2"
LOOSE = {"warning": Thresholds(shift=5.0)}
SHIFTED = (1.5, 0.0)


@pytest.fixture
def settings():
    return settings_of()


@pytest.fixture(scope="module")
def shifted(hour, copy_of):
    """The first pack after its quiet hour and twenty minutes of a shift: its drift alerts are out."""
    settings = settings_of()
    with copy_of(hour.template) as url:
        database = connect(PostgresSettings(url=url))
        first = hour.resumed(database)
        first.approve(settings)
        watcher = Watcher(database, settings, clock=first.now)
        seen = first.minutes(20, shift=SHIFTED, watcher=watcher)
        assert "drift.detected" in events(seen)
        database.dispose()
        yield first, drift_alerts(seen[-1].firing)


@pytest.fixture
def firing(shifted):
    """The first pack's open drift alerts, in a test that begins when they are out."""
    return shifted[1]


@pytest.fixture
def story(request, hour):
    """What went before: an hour, and the shift for a test that asks what is ``firing``."""
    return request.getfixturevalue("shifted")[0] if "firing" in request.fixturenames else hour


@pytest.fixture
def template(story):
    return story.template


@pytest.fixture
def first(story, database):
    return story.resumed(database)


@pytest.fixture
def watcher(database, settings, first):
    return Watcher(database, settings, clock=first.now)


def second(database, first):
    """A worker with another pack, that starts now."""
    other = Traffic(database, seed=2, pack=OTHER, worker="w2", partition=1)
    other.minute = first.minute
    return other


def side_by_side(n, first, other, watcher, *, shift=SHIFTED, there=True):
    """n minutes of the second pack; the first one's worker is ``there`` too, or shows nothing."""
    seen = []
    for _ in range(n):
        if there:
            first.minutes(1, shift=shift)
        else:
            first.minute += MINUTE
        other.minutes(1)
        seen.append(watcher.step())
    return seen


def drift_alerts(alerts):
    return {alert.alert_id for alert in alerts if alert.kind == "drift"}


def told(evaluations, kind=""):
    return [e for seen in evaluations for e in seen.events if e.type.startswith(kind)]


def events(evaluations, kind=""):
    return [event.type for event in told(evaluations, kind)]


def kept(database, alert_id):
    with transaction(database) as c:
        return next(alert for alert in list_alerts(c) if alert.alert_id == alert_id)


def test_a_second_pack_leaves_the_alerts_of_the_first_alone(
    first, firing, settings, watcher, database
):
    other = second(database, first)
    seen = side_by_side(10, first, other, watcher)
    assert events(seen) == []
    assert drift_alerts(seen[-1].firing) == firing
    seen += side_by_side(35, first, other, watcher)
    assert events(seen) == ["silence.detected"], "the second pack's own, after its half hour"
    missing = told(seen)[0].alert
    assert (missing.rule, missing.labels["pack"]) == ("no_baseline", OTHER)
    assert OTHER in missing.summary
    assert drift_alerts(seen[-1].firing) == firing


@pytest.mark.slow
def test_each_pack_is_compared_with_its_own_baseline(first, settings, watcher, database):
    first.approve(settings)
    other = second(database, first)
    side_by_side(60, first, other, watcher, shift=(0.0, 0.0))
    made = other.approve(settings)
    assert made.pack_id == OTHER
    seen = []
    for _ in range(15):
        first.minutes(1)
        other.minutes(1, shift=SHIFTED)
        seen.append(watcher.step())
    assert {d.baseline_id for d in seen[-1].drifts if d.pack_id == OTHER} == {made.baseline_id}
    assert len({(d.pack_id, d.feature, d.window) for d in seen[-1].drifts}) == 2 * 2 * 2
    alerts = [event.alert for event in told(seen, "drift.detected")]
    assert {alert.labels["pack"] for alert in alerts} == {OTHER}
    records = {p["record"].split("/")[1] for a in alerts for p in a.details["strongest_prompts"]}
    assert records == {"1"}, "the strongest prompts are those that its own worker scored"
    query = alerts[-1].details["query"]
    with database.connect() as c:
        c.execute(text("SET search_path TO monitor"))
        found = c.execute(text(query)).mappings().all()
    means = {row["baseline_mean"] for row in found}
    assert len(means) == 1, "what the query finds is of that pack alone"
    assert means.pop() == pytest.approx(alerts[-1].details["baseline"]["mean"], rel=1e-5)


def test_a_broken_copy_of_one_pack_holds_no_alert_of_another(first, settings, watcher, database):
    first.approve(settings)
    other = second(database, first)
    other.canaries = False
    with transaction(database) as c:
        other.run_canaries(c)
    seen = side_by_side(20, first, other, watcher)
    assert "drift.detected" in events(seen)
    broken = [event.alert for event in told(seen) if event.alert.rule == "instrument"]
    assert [alert.labels["pack"] for alert in broken] == [OTHER]


def test_alarms_about_the_ingest_are_raised_once_for_all_packs(first, settings, watcher, database):
    first.minutes(3, watcher=watcher)
    other = second(database, first)
    first.minute += timedelta(hours=20)  # the database's clock says when a chunk was stored
    other.minute = first.minute
    seen = []
    for _ in range(8):
        first.minute += MINUTE
        other.minute += MINUTE
        first.alive()
        other.alive()
        seen.append(watcher.step())
    raised = [event.alert for event in told(seen) if event.alert.rule != "no_baseline"]
    assert [alert.rule for alert in raised] == ["starvation"]
    assert "pack" not in raised[0].labels


@pytest.mark.slow
def test_a_pack_whose_workers_are_gone_is_no_longer_watched(
    first, firing, settings, watcher, database
):
    """The rollout: the second pack takes over, and nobody is told that the shift is over."""
    other = second(database, first)
    side_by_side(3, first, other, watcher)
    first.alive("stopped")
    gone = first.now()
    seen = side_by_side(59, first, other, watcher, there=False)
    assert events(seen, "drift") == []
    assert drift_alerts(seen[-1].firing) == firing
    seen = side_by_side(3, first, other, watcher, there=False)
    assert set(events(seen, "drift")) == {"drift.unwatched"}
    ended = [event.alert for event in told(seen, "drift")]
    assert {alert.alert_id for alert in ended} == firing
    for alert in ended:
        assert alert.summary.startswith(
            f"no longer watched: no worker of pack {PACK} since {gone:%Y-%m-%d %H:%M} UTC"
        )
        assert kept(database, alert.alert_id) == alert
        assert (alert.state, alert.resolved_at) == (AlertState.UNWATCHED, None)
    assert {pack.subject.pack_id for pack in seen[-1].packs} == {OTHER}
    with database.connect() as c:
        rows = c.execute(
            text("SELECT state, resolved_at, pack_id, unwatched_at FROM monitor.alerts"
                 " WHERE kind = 'drift'")
        ).all()  # fmt: skip
    assert {row[:3] for row in rows} == {("unwatched", None, PACK)}
    assert all(row.unwatched_at is not None for row in rows)
    seen = side_by_side(5, first, other, watcher, there=False)
    assert events(seen, "drift") == [], "it is told once"


@pytest.mark.slow
def test_a_worker_that_comes_back_in_time_pages_nobody_again(
    first, firing, settings, watcher, database
):
    other = second(database, first)
    seen = side_by_side(50, first, other, watcher, there=False)
    seen += side_by_side(40, first, other, watcher)
    assert events(seen, "drift") == []
    assert drift_alerts(seen[-1].firing) == firing


@pytest.mark.slow
def test_a_pack_that_is_watched_again_is_told_once_as_a_new_alert(
    first, firing, settings, watcher, database
):
    """Its receivers were told that nobody looks; that the shift still stands is news, once."""
    other = second(database, first)
    side_by_side(70, first, other, watcher, there=False)
    seen = side_by_side(30, first, other, watcher)
    detected = told(seen, "drift.detected")
    features = [event.alert.labels["feature"] for event in detected if event.sequence == 1]
    assert len(features) == len(set(features)) == len({e.alert_id for e in detected})
    assert "toxic" in features
    assert not {event.alert_id for event in detected} & firing


def test_without_any_worker_alerts_end_as_unwatched(first, firing, settings, watcher):
    seen = []
    for _ in range(70):
        first.minute += MINUTE
        seen.append(watcher.step())
    assert {e.alert_id for e in told(seen, "drift.unwatched")} == firing
    assert "drift.resolved" not in events(seen)
    assert seen[-1].packs == ()


def test_how_long_a_pack_is_watched_without_a_worker_is_a_setting(first, firing, database):
    settings = settings_of(unwatched_after=timedelta(minutes=10))
    watcher = Watcher(database, settings, clock=first.now)
    first.minute += 9 * MINUTE
    assert events([watcher.step()], "drift") == []
    first.minute += 2 * MINUTE
    assert set(events([watcher.step()], "drift")) == {"drift.unwatched"}


def test_an_end_in_silence_is_told_when_the_silence_is_over(
    first, firing, settings, watcher, database
):
    with transaction(database) as c:
        add_silence(
            c,
            Silence(
                silence_id="s1",
                matchers={"pack": PACK},
                starts_at=first.now(),
                ends_at=first.now() + timedelta(hours=3),
                created_by="a person",
            ),
        )
    first.minute += timedelta(hours=2)
    assert events([watcher.step()], "drift") == []
    first.minute += timedelta(hours=2)
    seen = [watcher.step(), watcher.step()]
    assert {event.alert_id for event in told(seen, "drift.unwatched")} == firing
    assert len(told(seen, "drift")) == len(firing)


def test_a_rule_that_was_removed_and_a_baseline_retired_are_not_called_resolved(
    first, firing, settings, watcher, database
):
    another = settings_of(rules=(DriftRule(name="r", features=("assistant",), severities=LOOSE),))
    seen = [Watcher(database, another, clock=first.now).step()]
    assert {e.alert_id for e in told(seen, "drift.unwatched")} == firing
    assert "no drift rule selects toxic" in told(seen, "drift.unwatched")[0].alert.summary
    again = first.minutes(5, shift=SHIFTED, watcher=watcher)
    assert "drift.detected" in events(again)
    with transaction(database) as c:
        retire_baseline(c, again[-1].packs[0].subject.baseline.baseline_id, "a person", first.now())
    seen = first.minutes(1, shift=SHIFTED, watcher=watcher)
    assert set(events(seen, "drift")) == {"drift.unwatched"}
    assert "has no approved baseline" in told(seen, "drift")[0].alert.summary


@pytest.mark.slow
def test_figures_of_two_packs_stand_side_by_side_and_go_with_their_pack(
    first, settings, watcher, database
):
    first.approve(settings)
    other = second(database, first)
    side_by_side(60, first, other, watcher, shift=(0.0, 0.0))
    other.approve(settings)
    side_by_side(2, first, other, watcher)
    assert METRICS.packs_live._value.get() == 2
    shown = {"feature": "toxic", "window": "15m"}
    values = {
        pack: METRICS.registry.get_sample_value("monitor_drift_shift", {"pack_id": pack} | shown)
        for pack in (PACK, OTHER)
    }
    assert values[PACK] > values[OTHER]
    side_by_side(65, first, other, watcher, there=False)
    for pack, there in ((PACK, False), (OTHER, True)):
        value = METRICS.registry.get_sample_value("monitor_drift_shift", {"pack_id": pack} | shown)
        assert (value is not None) is there
    assert METRICS.packs_live._value.get() == 1


def test_while_two_packs_are_live_a_baseline_is_captured_of_a_named_one(
    first, settings, watcher, database
):
    first.minutes(20)
    other = second(database, first)
    side_by_side(20, first, other, watcher, shift=(0.0, 0.0))

    def capture(pack):
        with transaction(database) as c:
            return operate.capture_baseline(
                c,
                settings,
                name="n",
                start=first.minute - 20 * MINUTE,
                end=first.minute,
                now=first.now(),
                pack=pack,
            )

    with pytest.raises(BadInput, match=r"2 packs have live workers.*--pack"):
        capture(None)
    with pytest.raises(BadInput, match="beginning of 2 pack ids"):
        capture("pack-")
    with pytest.raises(BadInput, match="beginning of 0 pack ids"):
        capture("elsewhere")
    assert capture(OTHER).pack_id == OTHER
    first.alive("stopped")
    assert capture(None).pack_id == OTHER
