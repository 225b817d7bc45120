"""The socket that a service listens on."""

from __future__ import annotations

import asyncio
import socket

import pytest

from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.run import listen


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_answers_are_sent_at_once_and_wait_for_no_acknowledgement(host: str) -> None:
    async def has_no_delay() -> bool:
        seen: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def see(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection: socket.socket = writer.get_extra_info("socket")
            seen.set_result(bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
            writer.close()

        listening = listen(ServerOptions(host=host, port=0))
        async with await asyncio.start_server(see, sock=listening):
            port = listening.getsockname()[1]
            _, writer = await asyncio.open_connection(host, port)
            found = await asyncio.wait_for(seen, 10)
            writer.close()
            return found

    assert asyncio.run(has_no_delay())
