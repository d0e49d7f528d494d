"""Is what was replayed what was served? A tiny model behind a real broker and a real Postgres."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, text

from monitor.alert.render import render
from monitor.metrics import METRICS
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import load_model
from monitor.score.pack import Pack
from monitor.settings import DriftSettings, Endpoint, ReplaySettings, Settings
from monitor.store.database import transaction
from monitor.values.alerts import Event
from monitor.watcher import Watcher
from tests.scenes.models import save_tiny
from tests.scenes.packs import drawn, feature, on_cpu, pack_of
from tests.worker.working import number, run_until, send, settings_for, working

TEMPLATE = (
    "{% if tools %}tools: {{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>\n{% endfor %}"
    "{% if tool_choice is defined %}choose: {{ tool_choice }}<|end|>\n{% endif %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TOOL = {"type": "function", "function": {"name": "find_fish", "parameters": {"type": "object"}}}
SCORED = "SELECT count(*) FROM monitor_data.scores"
AT = timedelta(minutes=5)
"""How long ago the records were served."""
FORMATS = ("standard", "alertmanager", "alertmanager_api", "pagerduty", "slack", "cloudevents")


@dataclass(frozen=True)
class Copy:
    folder: Path
    settings: ReplaySettings
    engine: ReplayEngine
    pack: Pack

    def prompt_tokens(self, request: dict[str, Any]) -> int:
        """What a server counts of a request: the ids of its chat template."""
        ids = self.engine.loaded.tokenizer.apply_chat_template(
            request["messages"],
            tools=request.get("tools"),
            add_generation_prompt=True,
            return_dict=False,
        )
        return len(ids)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    folder = save_tiny(tmp_path_factory.mktemp("served"), seed=3, template=TEMPLATE)
    features = [feature("curt", drawn(1)), feature("asked", drawn(2), region="prompt")]
    settings = on_cpu(folder)
    return Copy(
        folder=folder,
        settings=settings,
        engine=ReplayEngine(load_model(settings, 1), features, settings),
        pack=pack_of(folder, features),
    )


def record(
    copy: Copy, n: int, *, prompt_off: int = 0, answer_off: int = 0, **request: Any
) -> dict[str, Any]:
    """An exchange as a gateway logs it; the server counted so many tokens more than the copy does."""
    asked = {"model": "m", "messages": [{"role": "user", "content": f"question {n}?"}], **request}
    said = f"answer {n}"
    return {
        "request": asked,
        "response": {
            "id": f"r{n}",
            "object": "chat.completion",
            "created": int((datetime.now(UTC) - AT).timestamp()),
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": said},
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": copy.prompt_tokens(asked) + prompt_off,
                "completion_tokens": len(said) + 1 + answer_off,
            },
        },
    }


def with_rule(settings: Settings, **rule: Any) -> Settings:
    given = {"name": "replay_mismatch", "limit": 0.05, "for": 0, **rule}
    return settings.model_copy(update={"drift": DriftSettings(silence_rules=[given])})


Worked = Callable[..., Settings]


@pytest.fixture
def worked(database: Engine, kafka_bootstrap: str, topic: str, copy: Copy) -> Worked:
    """``worked(records)``: a worker with the tiny model has scored them all."""

    def work(records: Sequence[dict[str, Any]], copy: Copy = copy, **replay: Any) -> Settings:
        send(kafka_bootstrap, topic, [json.dumps(one).encode() for one in records])
        settings = settings_for(kafka_bootstrap, topic).model_copy(
            update={"replay": copy.settings.model_copy(update=replay)}
        )
        with working(database, settings, copy.engine, pack=copy.pack) as worker:
            run_until(worker, database, SCORED, len(records))
        return settings

    return work


def shown(database: Engine, query: str) -> list[tuple[Any, ...]]:
    with transaction(database) as c:
        return [tuple(row) for row in c.execute(text(query))]


def counted(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0.0


def announced(database: Engine, settings: Settings) -> list[Event]:
    return list(Watcher(database, settings).step().events)


def test_true_replays_agree_and_raise_nothing(database: Engine, worked: Worked, copy: Copy) -> None:
    before = counted(METRICS.registry, "monitor_replays_compared_total", verdict="same")
    settings = worked([record(copy, n, **({"tools": [TOOL]} if n % 2 else {})) for n in range(30)])
    assert shown(
        database,
        "SELECT fidelity, prompt_difference, answer_difference, count(*)"
        " FROM monitor.replay_fidelity GROUP BY 1, 2, 3",
    ) == [("same", 0, 0, 30)]
    after = counted(METRICS.registry, "monitor_replays_compared_total", verdict="same")
    assert after - before == 30
    assert announced(database, with_rule(settings)) == []


def test_tools_that_the_log_lost_are_told_with_what_they_mean(
    database: Engine, worked: Worked, copy: Copy
) -> None:
    """The server rendered tools of several sizes, the record names none: every count differs otherwise."""
    settings = worked([record(copy, n, prompt_off=40 + n) for n in range(25)])
    (event,) = announced(database, with_rule(settings))
    said = event.alert
    assert said.labels["rule"] == "replay_mismatch"
    assert said.labels["pack"] == copy.pack.pack_id
    assert "100.0% of 25 prompts" in said.summary
    assert "most often of the prompt (25): by various numbers, 40 fewer" in said.summary
    assert "limit 5.0%" in said.summary
    assert "what is replayed is not what was served" in said.summary
    assert 0.7 < said.details["share_low"] < 0.9
    assert said.details["records"] == 25
    assert "another template, other tools or another system prompt" in said.details["meaning"]
    assert "replay.chat_template" in said.details["mend"]
    rows = shown(database, said.details["query"])
    assert len(rows) == 20
    assert {row[0] for row in rows} == {"prompt"}


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_names_the_share_the_kind_and_the_mend(
    database: Engine, worked: Worked, copy: Copy, format: Any
) -> None:
    settings = worked([record(copy, n, prompt_off=1) for n in range(20)])
    (event,) = announced(database, with_rule(settings))
    secret = "whsec_" + "QUFB" * 8
    endpoint = Endpoint(name="ops", url="https://ops/", format=format, secret=secret)
    sent = render(event, endpoint, external_url="", attempt_at=event.created_at).body.decode()
    for words in (
        "100.0% of 20 prompts",
        "1 fewer in 20 of 20, a constant offset",
        "such as a BOS",
        "replay.prompt_count_tolerance: 1",
    ):
        assert words in sent


def test_what_a_tolerance_allows_is_the_same(database: Engine, worked: Worked, copy: Copy) -> None:
    settings = worked(
        [record(copy, n, prompt_off=1, answer_off=5) for n in range(20)],
        prompt_count_tolerance=1,
        answer_count_tolerance=0.5,
    )
    assert announced(database, with_rule(settings)) == []
    assert number(
        database,
        "SELECT count(*) FROM monitor.replay_fidelity WHERE fidelity = 'same'"
        " AND prompt_difference = -1 AND answer_difference = -5",
    ) == 20  # fmt: skip


@pytest.mark.parametrize(("differing", "fires"), [(4, False), (12, True)])
def test_the_lower_bound_of_the_share_must_pass_the_limit(
    database: Engine, worked: Worked, copy: Copy, differing: int, fires: bool
) -> None:
    """4 of 60 are more than 5 %, and may well come from less."""
    records = [record(copy, n, answer_off=9 if n < differing else 0) for n in range(60)]
    events = announced(database, with_rule(worked(records)))
    assert bool(events) is fires
    for event in events:
        assert "most often of the answer alone" in event.alert.summary


def test_few_prompts_and_records_without_counts_say_nothing(
    database: Engine, worked: Worked, copy: Copy
) -> None:
    bare = [record(copy, n) for n in range(40)]
    for one in bare:
        del one["response"]["usage"]
    settings = worked([*bare, *(record(copy, 90 + n, prompt_off=30) for n in range(19))])
    assert announced(database, with_rule(settings)) == []
    assert number(database, "SELECT count(*) FROM monitor.replay_fidelity") == 19


def test_an_exchange_with_images_is_not_compared(
    database: Engine, worked: Worked, copy: Copy
) -> None:
    """The server counts tokens for them; that they are not replayed is known without any count."""
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": "https://a/b.png"}},
    ]
    seen = record(copy, 0, prompt_off=576)
    seen["request"]["messages"][0]["content"] = parts
    worked([seen])
    assert number(database, "SELECT count(*) FROM monitor.replay_fidelity") == 0
    assert number(database, "SELECT min(served_prompt_tokens) FROM monitor_data.scores") > 576


def test_fields_that_were_left_out_are_counted_by_their_path(
    database: Engine, worked: Worked, copy: Copy
) -> None:
    name = "monitor_fields_left_out_total"
    before = counted(METRICS.registry, name, field="response.created")
    records = [record(copy, n) for n in range(3)]
    for one in records[:2]:
        one["response"]["created"] = 0
    worked(records)
    assert shown(database, "SELECT field, prompt_id FROM monitor.left_out ORDER BY 2") == [
        ("response.created", "r0"),
        ("response.created", "r1"),
    ]
    assert counted(METRICS.registry, name, field="response.created") - before == 2


CHOICES = ["auto", "required", "none", {"type": "function", "function": {"name": "find_fish"}}]


def test_the_choice_of_a_tool_changes_no_prompt(
    database: Engine, worked: Worked, copy: Copy
) -> None:
    """A server keeps it from the template and shows the tools, whatever is chosen."""
    worked([record(copy, n, tools=[TOOL], tool_choice=choice) for n, choice in enumerate(CHOICES)])
    assert shown(
        database,
        "SELECT fidelity, prompt_difference, count(*) FROM monitor.replay_fidelity GROUP BY 1, 2",
    ) == [("same", 0, 4)]


def test_what_a_request_gives_the_template_itself_reaches_it(
    database: Engine, worked: Worked, copy: Copy
) -> None:
    given = {"chat_template_kwargs": {"tool_choice": "required"}}
    worked([record(copy, 0, prompt_off=len("choose: required") + 2, tools=[TOOL], **given)])
    assert shown(database, "SELECT fidelity FROM monitor.replay_fidelity") == [("same",)]


def test_tools_that_are_forbidden_are_left_out_for_a_server_that_does_so(
    database: Engine, worked: Worked, copy: Copy
) -> None:
    settings = copy.settings.model_copy(update={"exclude_tools_when_tool_choice_none": True})
    excluding = replace(copy, engine=ReplayEngine(copy.engine.loaded, copy.pack.features, settings))
    records = [record(copy, n, tools=[TOOL], tool_choice=c) for n, c in enumerate(CHOICES)]
    bare = record(copy, 2)["response"]["usage"]
    records[2]["response"]["usage"] = bare
    worked(records, copy=excluding)
    assert shown(
        database,
        "SELECT fidelity, prompt_difference, count(*) FROM monitor.replay_fidelity GROUP BY 1, 2",
    ) == [("same", 0, 4)]
    lineages = [one.engine.lineage("p") for one in (copy, excluding)]
    assert lineages[0] != lineages[1]
