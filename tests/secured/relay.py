"""TLS in front of a server whose build has none: what reaches it has come through a handshake.

The wheels' Redis and PostgreSQL are built without TLS. Clients cannot tell: of Redis a connection is TLS from its first
byte, and of PostgreSQL from the moment that the server agrees to it.
"""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tidemill_testkit.authority import LOOPBACK, Pair

# What a client of PostgreSQL begins with where it wants TLS: eight bytes long, code 80877103.
SSL_REQUEST = (8).to_bytes(4, "big") + (80_877_103).to_bytes(4, "big")
CHUNK = 65_536
START_S = 60.0


class Relay:
    """Passes on what comes over TLS, to a port of the loopback."""

    def __init__(self, target: int, pair: Pair, *, asks: bool) -> None:
        self._target = target
        self._asks = asks
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(pair.certificate, pair.key)
        self._done = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self.port = 0

    def run(self) -> None:
        """Serve until `stop`."""
        asyncio.run(self._serve())

    def ready(self) -> None:
        """Wait until it listens."""
        assert self._ready.wait(START_S), "the relay does not listen"

    def stop(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._done.set)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._accept, LOOPBACK, 0, ssl=None if self._asks else self._tls)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._done.wait()
        server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._asks:
                if await reader.readexactly(len(SSL_REQUEST)) != SSL_REQUEST:
                    return
                writer.write(b"S")
                await writer.start_tls(self._tls)
            inward, outward = await asyncio.open_connection(LOOPBACK, self._target)
            await asyncio.gather(_copy(reader, outward), _copy(inward, writer))
        except (OSError, asyncio.IncompleteReadError):
            return  # who does not shake hands gets nothing
        finally:
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(CHUNK):
            writer.write(chunk)
            await writer.drain()
    writer.close()


@contextmanager
def relayed(target: int, pair: Pair, *, asks: bool = False) -> Iterator[int]:
    """Put TLS in front of a port; yields the relay's. `asks`: clients ask for TLS first, as PostgreSQL's do."""
    relay = Relay(target, pair, asks=asks)
    thread = threading.Thread(target=relay.run, name="relay", daemon=True)
    thread.start()
    relay.ready()
    try:
        yield relay.port
    finally:
        relay.stop()
        thread.join(START_S)
