"""What a broker says before it closes a connection, brought to whoever waits for the client library.

Two things keep it away in kafka-python 3.0.12, and a wrong password then looks like a broker that goes away:

- Apache Kafka refuses in an answer and closes behind it, so both arrive together, and the library drops the
  answer (``kafka.net.transport``). Here what was received is handed over first; the end is still there at the
  next read.
- A refusal at the start of a connection is logged and tried again for ever (``kafka.net.manager``), at a few
  attempts a second. The library can raise such errors; it is told of them here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kafka.net.compat import KafkaNetClient

Judge = Callable[[BaseException], object]


def heard(client: KafkaNetClient, is_refusal: Judge) -> KafkaNetClient:
    """The client itself; it now raises what ``is_refusal`` says is one, and tries no more.

    While it starts up, only when every address that it was given has refused: one may be mended alone.
    """
    manager = client._manager
    build, connect = manager._build_transport, manager._connect
    refused: dict[Any, BaseException] = {}

    async def built(*arguments: Any, **options: Any) -> Any:
        transport = await build(*arguments, **options)
        receive = transport._sock_recv

        def received() -> tuple[bytes, Exception | None]:
            data, error = receive()
            return data, None if data else error

        transport._sock_recv = received
        return transport

    async def connected(node: Any, connection: Any, *arguments: Any, **options: Any) -> None:
        await connect(node, connection, *arguments, **options)
        error = connection.init_future.exception
        if error is None or not is_refusal(error):
            refused.pop(node.node_id, None)
            return
        refused[node.node_id] = error
        first = {broker.node_id for broker in manager.cluster.bootstrap_brokers()}
        if node.node_id not in first or first <= refused.keys():
            manager._auth_failures.update(refused)

    manager._build_transport, manager._connect = built, connected
    return client
