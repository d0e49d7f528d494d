"""Chat templates are programs, and records are their input: they are run within bounds of time and memory.

In a process of its own, for nothing less holds: Jinja's sandbox bounds `range`, and neither nested loops nor
what strings grow to (``~``, ``*``, ``replace``, a filter's width), and Python can neither interrupt one long
operation nor take memory back from it. It ends with us, when its standard input does. It bounds itself by the kernel's limits (template_process.py):
of *processor* time, so that a busy machine refuses nothing that an idle one renders. One serves all templates of
this process; it has no environment but its path, and starts anew after an overrun.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

MOST_SECONDS: Final = 3
"""Of processor time for one rendering; what is rendered in production takes thousandths."""
MOST_MEGABYTES: Final = 512
"""Of memory for one rendering, beside what the process has at its start."""
MOST_CHARACTERS: Final = 16 * 2**20
"""Of one rendered text: four times the largest record."""
PATIENCE_SECONDS: Final = 120.0
"""Until an answer must have begun, on however busy a machine."""

_PROGRAM: Final = Path(__file__).with_name("template_process.py")


class Overrun(Exception):
    """The template took more time or memory than it may; the message says which and how much."""


class Raised(Exception):
    """The template, or what calls it, raised an error."""

    def __init__(self, kind: str, says: str) -> None:
        super().__init__(kind)
        self.kind = kind
        self.says = says
        """The template's own words, from ``raise_exception``; empty for every other error."""


def render(tokenizer: Any, template: str | None, arguments: Mapping[str, Any]) -> str:
    """`apply_chat_template` of ``tokenizer`` with ``arguments`` (JSON types), as text, within the bounds.

    ``template``: in place of the tokenizer's own. Raises `Overrun` and `Raised`.
    """
    if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
        # One that brings a rendering of its own runs no template of a model's folder.
        return _by_itself(tokenizer, template, arguments)
    try:
        chosen = tokenizer.get_chat_template(template, arguments.get("tools"))
    except Exception as error:
        raise Raised(type(error).__name__, "") from None
    asked = {
        "template": chosen,
        "seconds": MOST_SECONDS,
        "characters": MOST_CHARACTERS,
        "arguments": dict(arguments),
        "specials": tokenizer.special_tokens_map,
    }
    answer = _PROCESS.ask(json.dumps(asked, default=str).encode("ascii"))
    if answer.get("too_large"):
        raise Overrun(
            f"the chat template took more than {MOST_MEGABYTES} MB, or wrote more than "
            f"{MOST_CHARACTERS} characters"
        )
    if "raised" in answer:
        raise Raised(answer["raised"], answer["says"])
    text: str = answer["text"]
    return text


def _by_itself(tokenizer: Any, template: str | None, arguments: Mapping[str, Any]) -> str:
    try:
        text = tokenizer.apply_chat_template(**arguments, chat_template=template, tokenize=False)
    except Exception as error:
        raise Raised(type(error).__name__, "") from None
    assert isinstance(text, str)
    return text


class _Process:
    """The rendering process of this one; a fork starts its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._of = 0

    def ask(self, request: bytes) -> dict[str, Any]:
        """Raises `Overrun` when the process ended over it, or does not answer.

        An end that the limits do not explain may be the machine's doing (no memory, a signal): asked again once.
        """
        with self._lock:
            try:
                return self._asked(request)
            except EOFError:
                return self._asked(request, last=True)

    def _asked(self, request: bytes, *, last: bool = False) -> dict[str, Any]:
        """Raises `EOFError` for an end that is not final, unless this is the ``last`` time."""
        process = self._process()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(struct.pack(">I", len(request)) + request)
            process.stdin.flush()
            head = self._read(process, 4)
            answer = json.loads(self._read(process, *struct.unpack(">I", head)))
        except (OSError, EOFError, TimeoutError) as error:
            told = self._ended(process, error)
            if last or told.final:
                raise Overrun(told.words) from None
            raise EOFError from None
        assert isinstance(answer, dict)
        return answer

    def _process(self) -> subprocess.Popen[bytes]:
        if self._running is None or self._of != os.getpid() or self._running.poll() is not None:
            self._running = subprocess.Popen(
                [sys.executable, "-P", str(_PROGRAM), str(MOST_MEGABYTES)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={
                    name: os.environ[name]
                    for name in ("PATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
                    if name in os.environ
                }
                | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
            self._of = os.getpid()
            atexit.register(self._close, self._running)
        return self._running

    @staticmethod
    def _read(process: subprocess.Popen[bytes], size: int) -> bytes:
        assert process.stdout is not None
        until = monotonic() + PATIENCE_SECONDS
        parts: list[bytes] = []
        while size:
            left = until - monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                raise TimeoutError
            part = os.read(process.stdout.fileno(), min(size, 2**20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _close(self, process: subprocess.Popen[bytes]) -> None:
        if self._of == os.getpid() and process.poll() is None:
            process.kill()
            process.wait()

    def _ended(self, process: subprocess.Popen[bytes], error: Exception) -> _End:
        """What its end says; there is none any more afterwards."""
        self._running = None
        late = isinstance(error, TimeoutError)
        if late:
            process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        if code == -signal.SIGXCPU:
            words = f"the chat template took more than {MOST_SECONDS} s of processor time"
        elif late:
            words = f"the chat template gave no text within {PATIENCE_SECONDS:g} s"
        else:
            words = (
                f"the chat template ended its process (code {code}): more than {MOST_MEGABYTES} MB?"
            )
        return _End(words=words, final=late or code == -signal.SIGXCPU)


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """How a process ended; ``final`` when asking again would end it the same way."""

    words: str
    final: bool


_PROCESS: Final = _Process()
