"""The log holds no content and no secret, whoever writes it; the table of metrics is the page."""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy
import structlog

from monitor.heartbeat import Heartbeat
from monitor.logs import CONTENT_KEYS, SPARED_LINES, Once, configure, get_logger
from monitor.metrics import METRICS, Metrics, metrics_page
from monitor.settings import LogSettings

REPOSITORY = Path(__file__).parent.parent
Lines = Callable[[], list[dict[str, object]]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Lines]:
    """The JSON lines written since the last call."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    configure(LogSettings())
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def test_one_event_is_one_json_object(lines: Lines) -> None:
    get_logger("monitor.worker").info("chunk.stored", scored=3, spans=["prompts/0:5-8"])
    (line,) = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", str(line.pop("timestamp")))
    assert line == {
        "event": "chunk.stored",
        "scored": 3,
        "spans": ["prompts/0:5-8"],
        "level": "info",
        "logger": "monitor.worker",
    }


@pytest.mark.parametrize("key", sorted(CONTENT_KEYS))
def test_keys_that_could_carry_content_are_refused(lines: Lines, key: str) -> None:
    get_logger("monitor").warning("seen", **{key: "what the user said", "n": 1})
    (line,) = lines()
    assert "what the user said" not in json.dumps(line)
    assert line["refused_keys"] == [key]
    assert line["n"] == 1


def test_content_inside_a_logged_mapping_is_refused_too(lines: Lines) -> None:
    inner = {"content": "what the user said", "Prompt": "and this", "offset": 4}
    get_logger("monitor").info("seen", letters=[inner], deeper={"inner": inner})
    (line,) = lines()
    assert "said" not in json.dumps(line)
    assert "and this" not in json.dumps(line)
    assert line["letters"] == [{"offset": 4}]


@pytest.mark.parametrize(
    ("fields", "secret"),
    [
        ({"password": "hunter2"}, "hunter2"),
        ({"kafka_sasl_password": "hunter2"}, "hunter2"),
        ({"headers": {"Authorization": "hunter2"}}, "hunter2"),
        ({"url": "postgresql+psycopg://monitor:hunter2@db/monitor"}, "hunter2"),
        ({"said": "tried whsec_aHVudGVyMg== in vain"}, "aHVudGVyMg"),
        ({"header": "Bearer hunter2hunter2"}, "hunter2"),
        ({"endpoint": "https://hooks.slack.com/services/T0/B0/hunter2"}, "hunter2"),
        ({"error": ValueError("no: amqp://a:hunter2@x")}, "hunter2"),
    ],
)
def test_secrets_are_masked(lines: Lines, fields: dict[str, object], secret: str) -> None:
    get_logger("monitor").info("seen", **fields)
    (line,) = lines()
    assert secret not in json.dumps(line)
    assert "***" in json.dumps(line)


def test_counting_tokens_is_no_secret(lines: Lines) -> None:
    get_logger("monitor").info("seen", tokens=12, prompt_tokens=5, prompts=2, host="db:5432")
    (line,) = lines()
    assert (line["tokens"], line["prompt_tokens"], line["prompts"]) == (12, 5, 2)
    assert line["host"] == "db:5432"


def test_sql_parameters_stay_out_of_logged_errors(lines: Lines) -> None:
    engine = sqlalchemy.create_engine("sqlite://")
    try:
        with engine.connect() as c:
            c.execute(
                sqlalchemy.text("INSERT INTO nowhere VALUES (:a)"),
                {"a": "\n".join(["the user", "sa" + "id"])},
            )
    except sqlalchemy.exc.OperationalError as error:
        get_logger("monitor").exception("failed", error=str(error))
    (line,) = lines()
    assert "OperationalError" in str(line["exception"])
    assert "no such table" in str(line["error"])
    assert "said" not in json.dumps(line)


@pytest.mark.parametrize("name", ["kafka.coordinator", "sqlalchemy.pool", "apscheduler.scheduler"])
def test_libraries_write_through_the_same_renderer(lines: Lines, name: str) -> None:
    logger = logging.getLogger(name)
    logger.info("chatter")
    logger.warning("member %s left %s", "a", "kafka://u:hunter2@b")
    (line,) = lines()
    assert line["event"] == "member a left kafka://u:***@b"
    assert line["logger"] == name
    assert line["level"] == "warning"


def test_a_library_that_repeats_itself_is_heard_once_a_minute(lines: Lines) -> None:
    """What kafka-python says while a broker is away: as often, and with numbers that differ."""
    network = logging.getLogger("kafka.net.manager")
    for number in range(1, 40):
        network.warning("Bootstrap bootstrap-%d not ready; waiting %.2f secs", number, number / 7)
    (line,) = lines()
    assert line["event"] == "Bootstrap bootstrap-1 not ready; waiting 0.14 secs"
    try:
        raise ConnectionResetError("by the broker")
    except ConnectionResetError:
        network.exception("closing socket")
    (line,) = lines()
    assert line["event"] == "closing socket: by the broker (38 lines of kafka were left out)"
    assert "exception" not in line
    for word in "abcdefghijkl":
        network.error("another sentence %s", word)
    assert len(lines()) == SPARED_LINES - 2
    get_logger("monitor.worker").warning("worker.said")
    assert len(lines()) == 1, "ours are not counted"


def test_a_sentence_is_said_again_when_its_time_is_over() -> None:
    once = Once(60.0)
    said = [
        once.may_say(f"waiting {seconds} s", now=seconds) for seconds in (0.0, 59.0, 60.0, 61.0)
    ]
    assert said == [True, False, True, False]


def test_library_that_brings_its_own_handler_is_adopted(lines: Lines) -> None:
    transformers = logging.getLogger("transformers")
    transformers.addHandler(logging.StreamHandler())
    transformers.propagate = False
    logging.getLogger("transformers.modeling").warning("weights are tied")
    (line,) = lines()
    assert line["event"] == "weights are tied"


def test_urls_of_webhooks_are_not_logged_by_the_client(lines: Lines) -> None:
    logging.getLogger("httpx").info("HTTP Request: POST https://receiver/secret-path")
    assert lines() == []


def test_python_warnings_are_lines_too(lines: Lines) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure(LogSettings())
        warnings.warn("old setting", stacklevel=1)
    (line,) = lines()
    assert "old setting" in str(line["event"])
    assert line["logger"] == "py.warnings"


def test_level_and_console_format(lines: Lines, capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(level="warning", format="console"))
    log = get_logger("monitor")
    log.info("quiet")
    log.warning("heard", prompt="what the user said", n=2)
    written = capsys.readouterr().err
    assert "quiet" not in written
    assert "heard" in written
    assert "n=2" in written
    assert "what the user said" not in written


def test_metrics_page_is_the_table() -> None:
    kept = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert kept == metrics_page(), (
        "run: python -c 'from monitor.metrics import metrics_page as m; print(m(), end=\"\")' "
        "> docs/metrics.md"
    )


def test_every_metric_has_a_unit_a_meaning_and_an_action() -> None:
    assert len({row.name for row in METRICS.table}) == len(METRICS.table)
    for row in METRICS.table:
        assert re.fullmatch(r"monitor_[a-z_]+", row.name)
        assert row.name.endswith("_total") == (row.kind == "counter"), row.name
        assert row.name.endswith("_seconds") or row.kind != "histogram", row.name
        assert row.help.endswith("."), row.name
        assert row.action.endswith("."), row.name


def test_every_metric_is_fed_somewhere() -> None:
    sources = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (REPOSITORY / "monitor").rglob("*.py")
        if path.name != "metrics.py"
    )
    attributes = {
        name
        for name, value in vars(Metrics()).items()
        if hasattr(value, "collect") and name != "registry"
    }
    unfed = {name for name in attributes - {"build_info"} if f"METRICS.{name}." not in sources}
    assert not unfed


def test_canaries_are_unknown_and_not_failed_before_the_first_run() -> None:
    registry = Metrics().registry
    for name in ("monitor_canary_reproduced", "monitor_canary_deviation"):
        value = registry.get_sample_value(name)
        assert value is not None
        assert math.isnan(value)


def test_heartbeat_counts_from_the_last_beat_of_each_loop() -> None:
    now = 50.0
    heartbeat = Heartbeat(lambda: now)
    assert heartbeat.age("worker") is None
    heartbeat.beat("worker")
    now = 53.0
    heartbeat.beat("watcher")
    now = 60.0
    assert heartbeat.age("worker") == 10.0
    assert heartbeat.age("worker", 55.0) == 5.0
    assert heartbeat.ages() == {"worker": 10.0, "watcher": 7.0}
    heartbeat.beat("worker")
    heartbeat.retire("watcher")
    assert heartbeat.ages() == {"worker": 0.0}


def test_heartbeat_bears_loops_coming_and_going() -> None:
    heartbeat = Heartbeat()
    failures: list[BaseException] = []
    stop = threading.Event()

    def beat(name: str) -> None:
        try:
            while not stop.is_set():
                heartbeat.beat(name)
                heartbeat.retire(name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=beat, args=(f"loop-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(2_000):
        assert all(age >= 0 for age in heartbeat.ages().values())
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
