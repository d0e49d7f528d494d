"""Chat templates that never end, or eat memory: the record is refused and the next one is rendered."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from monitor.replay import bounded
from monitor.replay.regions import Tokens
from monitor.replay.tokens import Tokeniser
from monitor.values.prompts import DeadReason
from monitor.values.scores import Unreplayable
from tests.replay.families import as_prompt, say

GOOD = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = (
    "{% set kept = namespace(text='x' * 1000) %}"
    "{% for i in range(60) %}{% set kept.text = kept.text ~ kept.text %}{% endfor %}{{ kept.text }}"
)
BOMBS = {
    "endless": (ENDLESS, "3 s of processor time"),
    "one long operation": ("{{ ('x' * 400000 ~ 'y').replace('x', 'x' * 400000) }}", "512 MB"),
    "doubled": (DOUBLED, "512 MB"),
    "wide": ("{{ 'x'.center(99999999999) }}", "512 MB"),
    "recursive": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "long": ("{% for i in range(2000) %}{{ 'x' * 10000 }}{% endfor %}", "characters"),
}


ARGUMENTS = {"conversation": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_and_what_comes_next_is_not(
    tokenizer: PreTrainedTokenizerFast, bomb: str
) -> None:
    template, said = BOMBS[bomb]
    with pytest.raises((bounded.Overrun, bounded.Raised), match=said):
        bounded.render(tokenizer, template, ARGUMENTS)
    assert bounded.render(tokenizer, GOOD, ARGUMENTS) == "user: hello\n"


def test_a_record_that_makes_the_template_run_on_is_a_dead_letter(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """The template is well; what it is given decides how long it runs."""
    own = deepcopy(tokenizer)
    own.chat_template = GOOD + "{% if messages[0].content == 'bomb' %}" + ENDLESS + "{% endif %}"
    tokeniser = Tokeniser(own, limit=256)
    bomb, well = tokeniser.tokenise(
        [as_prompt({"messages": [say("user", text)]}) for text in ("bomb", "hello")]
    )
    assert isinstance(bomb, Unreplayable)
    assert bomb.reason is DeadReason.TEMPLATE_REFUSED
    assert bomb.detail == "the chat template took more than 3 s of processor time"
    assert isinstance(well, Tokens)


def test_what_is_rendered_within_bounds_is_what_a_server_renders(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    given = {
        "conversation": [
            {"role": "user", "content": "größe \ud7ff \U0001f600", "extra": [1, None]}
        ],
        "add_generation_prompt": True,
        "flag": 1.5,
    }
    template = GOOD + "{{ bos_token }}{{ flag }}{{ messages[0].extra }}{{ messages | tojson }}"
    assert bounded.render(tokenizer, template, given) == tokenizer.apply_chat_template(
        **given, chat_template=template, tokenize=False
    )


def test_the_rendering_process_knows_no_secret(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONITOR_POSTGRES__URL", "postgresql://canary-secret@host/name")
    with pytest.raises(bounded.Overrun):
        bounded.render(tokenizer, ENDLESS, ARGUMENTS)  # so that a new one starts
    bounded.render(tokenizer, GOOD, ARGUMENTS)
    process = bounded._PROCESS._running
    assert process is not None
    environment = Path(f"/proc/{process.pid}/environ").read_bytes()
    assert b"canary-secret" not in environment


SLOW = "{% for i in range(400) %}{% for j in range(9999) %}{% endfor %}{% endfor %}well"
"""Long enough to be killed in."""


@pytest.mark.parametrize(("kills", "answers"), [(1, True), (2, False)])
def test_a_process_that_the_machine_kills_costs_no_record_the_first_time(
    tokenizer: PreTrainedTokenizerFast, kills: int, answers: bool
) -> None:
    bounded.render(tokenizer, GOOD, ARGUMENTS)
    killed: set[int] = set()
    done = threading.Event()

    def kill() -> None:
        while len(killed) < kills and not done.wait(0.02):
            running = bounded._PROCESS._running
            # Only while it renders: one that is found dead is replaced before it is asked.
            if running is not None and running.pid not in killed and cpu_seconds(running.pid) > 0:
                killed.add(running.pid)
                running.kill()

    def cpu_seconds(pid: int) -> float:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            return used - begun.setdefault(pid, used)
        return 0.0

    begun: dict[int, float] = {}
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        if answers:
            assert bounded.render(tokenizer, SLOW, ARGUMENTS) == "well"
        else:
            with pytest.raises(bounded.Overrun, match="code -9"):
                bounded.render(tokenizer, SLOW, ARGUMENTS)
    finally:
        done.set()
        killer.join()
    assert len(killed) == kills
    assert bounded.render(tokenizer, GOOD, ARGUMENTS) == "user: hello\n"
