"""The process that renders chat templates: run as a file, never imported. It bounds itself.

Reads requests from standard input and answers on standard output, each a length in four bytes (big
endian) and JSON. A request is ``template`` (text), ``seconds`` (of processor time), ``characters`` (of the
text, at most) and ``arguments`` and ``specials`` for `apply_chat_template`. The answer is ``text``, or ``raised`` (the
error's type) with ``says`` (its words, where the template raised it itself), or ``too_large``. No answer but an
end by SIGXCPU: the time was up.
"""

import json
import math
import resource
import struct
import sys
import time
from types import SimpleNamespace
from typing import Any


def _within(megabytes: int) -> None:
    """No more memory than now and ``megabytes`` (where Linux tells what it is now), no core, no file, no
    further process."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        memory = resource.getrlimit(resource.RLIMIT_AS)[1]
    else:
        memory = now + megabytes * 2**20
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))


def _rendered(apply: Any, asked: dict[str, Any]) -> dict[str, Any]:
    from jinja2 import TemplateError

    template = asked["template"]
    tokenizer = SimpleNamespace(
        get_chat_template=lambda *_: template, special_tokens_map=asked["specials"]
    )
    up_at = math.ceil(time.process_time() + asked["seconds"])
    resource.setrlimit(resource.RLIMIT_CPU, (up_at, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    try:
        text = apply(tokenizer, **asked["arguments"], tokenize=False)
    except MemoryError:
        return {"too_large": True}
    except Exception as error:
        says = str(error)[:10_000] if type(error) is TemplateError else ""
        return {"raised": type(error).__name__, "says": says}
    return {"text": text} if len(text) <= asked["characters"] else {"too_large": True}


def main(megabytes: int) -> None:
    sys.modules["torch"] = None  # type: ignore[assignment]  # no template needs it, and it takes seconds
    from transformers import PreTrainedTokenizerBase

    _within(megabytes)
    asking, answering = sys.stdin.buffer, sys.stdout.buffer
    while len(head := asking.read(4)) == 4:
        asked = json.loads(asking.read(*struct.unpack(">I", head)))
        answer = json.dumps(_rendered(PreTrainedTokenizerBase.apply_chat_template, asked)).encode(
            "ascii"
        )
        answering.write(struct.pack(">I", len(answer)) + answer)
        answering.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
