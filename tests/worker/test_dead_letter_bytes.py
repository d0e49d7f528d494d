"""Which bytes are kept with dead letters: in the table and on the dead-letter topic, by one rule."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from sqlalchemy import Engine, text

from benchmarks.null_replay import NullReplay
from monitor.settings import Settings
from monitor.store.database import transaction
from monitor.values.prompts import DeadReason
from monitor.values.scores import Unreplayable
from tests.worker.working import FEATURES, prompts, run_until, send, settings_for, working

LARGEST = 2_048
BROKEN = b'{"prompt": "cut off'
OVERSIZE = b'{"prompt": "' + b"x" * LARGEST + b'"}'
REFUSED = b'{"prompt": "refuse me", "response": "yes"}'
OVERFLOWN = b'{"prompt": "overflow", "response": "yes"}'
WORDLESS = b'{"prompt": "no tokens", "response": "yes"}'


def span(messages: object) -> dict[str, Any]:
    said = [{"role": "assistant", "parts": [{"type": "text", "content": "yes"}]}]
    pairs = {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": messages,
        "gen_ai.output.messages": json.dumps(said),
    }
    return {
        "attributes": [
            {"key": key, "value": {"stringValue": value}}
            if isinstance(value, str)
            else {"key": key, "value": {"intValue": value}}
            for key, value in pairs.items()
        ],
        "endTimeUnixNano": "1772366370000000000",
    }


def chat(content: str) -> str:
    return json.dumps([{"role": "user", "parts": [{"type": "text", "content": content}]}])


SEVERAL = json.dumps(
    {
        "resourceSpans": [
            {
                "scopeSpans": [
                    {"spans": [span(chat("refuse me")), span(3), span(chat("well")), span(4)]}
                ]
            }
        ]
    }
).encode()
"""Four prompts of one message: two that cannot be read, one that the replay refuses, a good one."""


class Refusing(NullReplay):
    """Refuses prompts by what they say, the way the engine does."""

    REASONS = {  # noqa: RUF012
        "refuse me": DeadReason.TEMPLATE_REFUSED,
        "overflow": DeadReason.NON_FINITE,
        "no tokens": DeadReason.NO_TOKENS,
    }

    def run(self, prepared: Any) -> list[Any]:
        outcomes = super().run(prepared)
        for place, prompt in enumerate(prepared):
            said = prompt.text or prompt.messages[-1].content
            if said in self.REASONS:
                outcomes[place] = Unreplayable(prompt=prompt, reason=self.REASONS[said])
        return outcomes


def letters_of(database: Engine) -> list[tuple[int, int, str, bytes | None]]:
    """(offset, index, reason, bytes) of every dead letter, in order."""
    with transaction(database) as c:
        rows = c.execute(
            text("""
                SELECT record_offset, record_index, reason, content FROM monitor_data.dead_letters
                ORDER BY record_offset, record_index
            """)
        )
        return [tuple(row) for row in rows]


def announced(bootstrap: str, topic: str) -> list[dict[str, Any]]:
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, auto_offset_reset="earliest", consumer_timeout_ms=1_000
    )
    consumer.assign([TopicPartition(topic, 0)])
    values = [json.loads(record.value) for record in consumer]
    consumer.close()
    return values


def settings_with(bootstrap: str, topic: str, letters: str, *, keep: bool) -> Settings:
    settings = settings_for(
        bootstrap, topic, max_record_bytes=LARGEST, store_dead_letter_content=keep
    )
    kafka = settings.kafka.model_copy(update={"dead_letter_topic": letters})
    return settings.model_copy(update={"kafka": kafka})


@pytest.mark.parametrize("keep", [True, False])
def test_only_bytes_that_may_be_kept_are_kept_and_once(
    database: Engine, kafka_bootstrap: str, make_topic: Callable[..., str], keep: bool
) -> None:
    topic, dead = make_topic(), make_topic()
    values = [BROKEN, OVERSIZE, REFUSED, OVERFLOWN, WORDLESS, SEVERAL, *prompts(10)]
    send(kafka_bootstrap, topic, values)
    settings = settings_with(kafka_bootstrap, topic, dead, keep=keep)
    with working(database, settings, Refusing(FEATURES)) as worker:
        run_until(worker, database, "SELECT count(*) FROM monitor_data.scores", 11)
    kept = letters_of(database)
    wanted = [
        (0, 0, "not_json", BROKEN),
        (1, 0, "oversize", None),
        (2, 0, "template_refused", REFUSED),
        (3, 0, "non_finite", OVERFLOWN),
        (5, 0, "template_refused", SEVERAL),
        (5, 1, "invalid_field", None),
        (5, 3, "invalid_field", None),
    ]
    assert kept == [(*key, content if keep else None) for *key, content in wanted]
    told = {
        (value["offset"], value["index"]): base64.b64decode(value["content"])
        for value in announced(kafka_bootstrap, dead)
        if "content" in value
    }
    assert told == {(o, i): content for o, i, _, content in kept if content is not None}
    assert len(announced(kafka_bootstrap, dead)) == len(wanted)
