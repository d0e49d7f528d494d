"""What the monitor says of itself: one JSON object (or one console line) per event on stderr.

It never holds prompt text and never a secret: `CONTENT_KEYS` are refused whatever module logs them.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import MutableMapping
from typing import Any, Final, cast

import structlog

from monitor.redaction import HIDDEN, without_secrets
from monitor.settings import LogSettings

CONTENT_KEYS: Final = frozenset(
    {
        "answer",
        "body",
        "completion",
        "content",
        "generated",
        "input",
        "inputs",
        "messages",
        "output",
        "outputs",
        "payload",
        "prompt",
        "prompt_text",
        "raw",
        "record",
        "response",
        "response_text",
        "system_prompt",
        "text",
        "texts",
        "value",
    }
)
"""Keys under which a logged value could carry what a user or the model said: refused, always."""

_SECRET_KEY = re.compile(
    r"(?:^|_)(?:password|passwd|secret|secrets|authorization|api_key|routing_key|hash_key"
    r"|private_key|access_token|token|credentials)$"
)
_PARAMETERS = re.compile(r"\n?\[parameters: .*?(?=\n\(Background|\n\S|\Z)", re.DOTALL)
"""SQLAlchemy puts a statement's parameters into the error's text; they may hold anything."""

_QUIET: Final = {
    "kafka": logging.WARNING,
    "sqlalchemy": logging.WARNING,
    "alembic": logging.INFO,
    "apscheduler": logging.WARNING,
    "transformers": logging.WARNING,
    "huggingface_hub": logging.WARNING,
    "httpx": logging.WARNING,  # its INFO line holds the whole URL, and a webhook's URL is a secret
    "httpcore": logging.WARNING,
    "uvicorn": logging.WARNING,
}
_SPARING: Final = "kafka"
"""A library that says the same several times a second for as long as a broker is away."""
SPARED_SECONDS: Final = 60.0
SPARED_LINES: Final = 6
"""Most lines of such a library in `SPARED_SECONDS`; what must be known is said by our own events."""
_SELF_HANDLED: Final = ("transformers", "huggingface_hub")

Event = MutableMapping[str, Any]


def configure(log: LogSettings) -> None:
    """Send every log line of the process, our own and the libraries', through one renderer.

    May be called again: the later call wins.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        refuse_content,
    ]
    if log.format == "json":
        renderer: structlog.typing.Processor = structlog.processors.JSONRenderer(default=str)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    tail: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        redact_secrets,
        renderer,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = _Stderr()
    handler.addFilter(Spared(_SPARING))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(log.level.upper())
    logging.captureWarnings(True)
    for name in _SELF_HANDLED:
        _adopt(name)
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(max(level, root.level))


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module; events are short names, everything else is a key: ``log.info("chunk stored", n=3)``."""
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger(name))


def refuse_content(_logger: object, _method: str, event: Event) -> Event:
    """Replace what could be prompt text by the names of the refused keys."""
    refused = sorted(key for key in event if key.lower() in CONTENT_KEYS)
    for key in refused:
        del event[key]
    if refused:
        event["refused_keys"] = refused
    return event


def redact_secrets(_logger: object, _method: str, event: Event) -> Event:
    """Mask secrets by key and, inside any string, by value and shape; drop SQL parameters from errors."""
    for key, value in event.items():
        event[key] = HIDDEN if _SECRET_KEY.search(key.lower()) and value else _redacted(value)
    return event


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(_PARAMETERS.sub("", value))
    if isinstance(value, BaseException):
        return _redacted(str(value))
    if isinstance(value, dict):
        return {
            key: HIDDEN if _SECRET_KEY.search(str(key).lower()) and item else _redacted(item)
            for key, item in value.items()
            if str(key).lower() not in CONTENT_KEYS
        }
    if isinstance(value, list | tuple):
        return [_redacted(item) for item in value]
    return value


class Once:
    """Which sentences may be said again: each once in ``seconds``, whatever numbers it holds.

    ``most`` bounds all of them together. For one thread at a time.
    """

    def __init__(self, seconds: float, most: int = 1_000) -> None:
        self._seconds = seconds
        self._most = most
        self._said: dict[str, float] = {}

    def may_say(self, sentence: str, now: float) -> bool:
        """Whether it is time for it; if so it counts as said at ``now``, in seconds of any clock."""
        self._said = {one: at for one, at in self._said.items() if now - at < self._seconds}
        shape = _NUMBER.sub("#", sentence)
        if shape in self._said or len(self._said) >= self._most:
            return False
        self._said[shape] = now
        return True


_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?")


class Spared(logging.Filter):
    """Lets through what `Once` allows of a library's lines, without tracebacks, and counts the rest."""

    def __init__(self, library: str) -> None:
        super().__init__(library)
        self._once = Once(SPARED_SECONDS, SPARED_LINES)
        self._left_out = 0
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        if not super().filter(record):
            return True
        with self._lock:
            return self._let_through(record)

    def _let_through(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if record.exc_info and isinstance(record.exc_info[1], OSError | RuntimeError):
            said = f"{said}: {record.exc_info[1]}"
            record.exc_info = None
        if not self._once.may_say(f"{record.name} {record.levelname} {said}", record.created):
            self._left_out += 1
            return False
        if self._left_out:
            said = f"{said} ({self._left_out} lines of {self.name} were left out)"
            self._left_out = 0
        record.msg, record.args = said, None
        return True


def configure_command() -> None:
    """Of what a command logs only warnings and worse are told, on standard error: its output is its answer."""
    structlog.configure(
        processors=[
            _warnings_alone,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            refuse_content,
            structlog.processors.format_exc_info,
            redact_secrets,
            structlog.dev.ConsoleRenderer(colors=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _warnings_alone(
    _logger: object, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    if method in ("debug", "info"):
        raise structlog.DropEvent
    return event


class _Stderr(logging.Handler):
    """Writes to what ``sys.stderr`` is at that moment: a live display may have put itself there."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


class _Adopted(logging.Logger):
    """The logger of a library that installs a handler of its own, now or when it is imported."""

    def addHandler(self, hdlr: logging.Handler) -> None:
        """Ours, at the root, is the only one."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, True if name == "propagate" else value)


def _adopt(name: str) -> None:
    logger = logging.getLogger(name)
    logger.__class__ = _Adopted
    logger.handlers.clear()
    logger.propagate = True
