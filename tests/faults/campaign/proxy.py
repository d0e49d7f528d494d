"""A TCP proxy that can be told to misbehave: what a network does to those who talk over it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

PIECE = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Poison:
    """What is answered instead of the server's answer, again and again; nobody else is asked."""

    first: bytes = b""
    again: bytes
    pause: float = 0.0


FLOOD = Poison(again=b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 50)
DRIP = Poison(first=b"HTTP/1.1 200 OK\r\n", again=b"x: y\r\n", pause=0.05)


class Proxy:
    """Stands on a port of its own before ``port`` of this machine, from ``with`` to its end.

    ``kafka``: the addresses in a broker's answers are the proxy's, so that clients come back to it.
    """

    def __init__(self, port: int, *, kafka: bool = False) -> None:
        self._target = port
        self._kafka = kafka
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._open: set[asyncio.StreamWriter] = set()
        self._goes = asyncio.Event()
        self._goes.set()
        self._refuses = False
        self._slow = 0.0
        self._left: int | None = None
        self._poison: Poison | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._wait(self._listen())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    # --- what it can be told ---------------------------------------------------------------------

    def cut(self) -> None:
        """Reset every connection."""
        self._do(self._cut)

    def cut_after(self, size: int) -> None:
        """Reset every connection as soon as ``size`` more bytes went through, whatever they belong to."""

        def later() -> None:
            self._left = size

        self._do(later)

    def refuse(self, refuses: bool) -> None:
        """Reset every connection, and each new one."""

        def set_it() -> None:
            self._refuses = refuses
            if refuses:
                self._cut()

        self._do(set_it)

    def stall(self, stalls: bool) -> None:
        """Let nothing through and close nothing."""
        self._do(self._goes.clear if stalls else self._goes.set)

    def slow(self, seconds: float) -> None:
        """Let each piece through ``seconds`` late."""

        def set_it() -> None:
            self._slow = seconds

        self._do(set_it)

    def poison(self, poison: Poison | None) -> None:
        """Answer new connections with ``poison``; reset those there are."""

        def set_it() -> None:
            self._poison = poison
            self._cut()

        self._do(set_it)

    def behave(self) -> None:
        """Be a good proxy again."""

        def set_it() -> None:
            self._refuses, self._slow, self._left = False, 0.0, None
            if self._poison is not None:
                self._poison = None
                self._cut()
            self._goes.set()

        self._do(set_it)

    # --- how it does it --------------------------------------------------------------------------

    def _do(self, action: Callable[[], None]) -> None:
        async def run() -> None:
            action()

        self._wait(run())

    def _wait(self, coroutine: object) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)  # type: ignore[arg-type]

    def _cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]

    async def _serve(self, near: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        if self._refuses:
            answer.transport.abort()
            return
        self._open.add(answer)
        far_writer: asyncio.StreamWriter | None = None
        try:
            if self._poison is not None:
                await self._answer_with(self._poison, near, answer)
                return
            far, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._open.add(far_writer)
            back = self._frames if self._kafka else self._pieces
            ways = [self._pieces(near, far_writer), back(far, answer)]
            tasks = [asyncio.create_task(way) for way in ways]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
        except OSError:
            pass
        finally:
            for writer in filter(None, (answer, far_writer)):
                self._open.discard(writer)
                writer.transport.abort()

    async def _answer_with(
        self, poison: Poison, near: asyncio.StreamReader, answer: asyncio.StreamWriter
    ) -> None:
        await near.read(PIECE)
        answer.write(poison.first)
        while True:
            answer.write(poison.again)
            await answer.drain()
            await asyncio.sleep(poison.pause)

    async def _pieces(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await source.read(PIECE):
                await self._pass(piece, to)

    async def _frames(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        """Kafka's answers: a length in four bytes, then so many bytes; ports are four bytes, too."""
        host = b"127.0.0.1"
        ours, theirs = (host + port.to_bytes(4, "big") for port in (self.port, self._target))
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                length = await source.readexactly(4)
                frame = await source.readexactly(int.from_bytes(length, "big"))
                await self._pass(length + frame.replace(theirs, ours), to)

    async def _pass(self, piece: bytes, to: asyncio.StreamWriter) -> None:
        await self._goes.wait()
        if self._slow:
            await asyncio.sleep(self._slow)
        if self._left is not None:
            self._left -= len(piece)
            if self._left < 0:
                to.write(piece[: len(piece) + self._left])
                self._left = None
                await to.drain()
                self._cut()
                return
        to.write(piece)
        await to.drain()
