"""Connections to the face, bounded in number and time: requests that are never finished cost nobody else.

Every answer here is small and every request is a few headers. A connection that has not sent a whole
request in `REQUEST_SECONDS`, or has not taken its answer in `ANSWER_SECONDS`, is closed. When
`CONNECTIONS` are open, a new one takes the place of the one that has waited longest, so that a probe is
answered however many others hang.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS: Final = 256
"""Far below the file descriptors of a process, which the loops need too."""
REQUEST_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 120.0
"""Longer than a statement of the database may take."""


class BoundedProtocol(H11Protocol):
    """One connection of uvicorn's; ``connections`` are those of its server."""

    _deadline: asyncio.TimerHandle | None = None
    _since: float = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._wait()
        super().on_response_complete()

    @property
    def answering(self) -> bool:
        """Whether a whole request is there and its answer is not."""
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        """For a request, from now on."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._since = self.loop.time()
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._late)

    def _late(self) -> None:
        if self.answering and self.loop.time() - self._since < ANSWER_SECONDS:
            self._deadline = self.loop.call_later(ANSWER_SECONDS, self._late)
            return
        self.transport.abort()

    def _make_room(self) -> None:
        """Close what has waited longest; of those that are being answered only if all are."""
        others: list[Any] = [one for one in self.connections if one is not self]
        longest = min(others, key=lambda one: (one.answering, one._since))
        self.connections.discard(longest)
        longest.transport.abort()
