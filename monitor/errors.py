"""One tree of errors; a branch names what the caller does about it.

``Retry``         the cause is outside and passes: wait and do the same again.
``RefuseToStart`` the configuration, a pack, a model or a schema is wrong: say how to mend it, exit 2.
``StopLoudly``    going on would lose data or tell lies: stop, exit 1, let the platform page someone.
``Discard``       this work belongs to somebody else now: drop it, nothing is lost.
``BadInput``      what a person or a file gave is wrong: name the field and the fix.

Records that cannot be read are no errors: they become `records.DeadLetter` values.
"""

from monitor.redaction import without_secrets


class MonitorError(Exception):
    """The root. ``hint`` says what a person can do about it. Neither shows a secret."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(without_secrets(message))
        self.hint = without_secrets(hint)


class Retry(MonitorError):
    """Wait and do the same again."""


class BrokerUnavailable(Retry):
    """Kafka does not answer."""


class DatabaseUnavailable(Retry):
    """Postgres does not answer, or gave up a transaction that can be repeated."""


class RegistryUnavailable(Retry):
    """The schema registry does not answer, or refuses our credentials."""


class ReplayUnavailable(Retry):
    """The engine that replays does not answer."""


class JudgeUnavailable(Retry):
    """The endpoint that rates answers does not answer, or wants fewer requests."""


class ServerUnavailable(Retry):
    """The served endpoint does not answer, or wants fewer requests: for ``retry_after`` seconds, if it said so."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RefuseToStart(MonitorError):
    """The process must not start like this."""


class ConfigurationError(RefuseToStart):
    """A setting is unknown, missing or contradictory."""


class PackError(RefuseToStart):
    """A pack is unreadable, altered, or made for another model."""


class ModelError(RefuseToStart):
    """A model cannot be loaded, or is of an unsupported kind."""


class SchemaError(RefuseToStart):
    """The database schema is not the one this version needs."""


class StopLoudly(MonitorError):
    """Going on would lose data or tell lies."""


class EverythingUnreadable(StopLoudly):
    """Nearly all recent records came to nothing: a bad deploy or a wrong setting, not bad records."""


class OtherInstrument(StopLoudly):
    """The engine that replays is no longer the one that scores are said to come from."""


class Discard(MonitorError):
    """The work in hand is no longer ours."""


class StaleChunk(Discard):
    """Another worker has stored these offsets; the partition was taken away from us."""


class StaleAlert(Discard):
    """Another watcher has taken this step of the alert."""


class StaleLease(Discard):
    """Another process leads by now."""


class ServerRefused(MonitorError):
    """The served endpoint does not take a question, or answers with what is no chat completion."""


class BadInput(MonitorError):
    """A person's or a file's input is wrong; the message names the field and the fix."""
