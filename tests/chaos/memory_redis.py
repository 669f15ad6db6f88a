"""Redis in memory, under redis-py's own client: what the service sends is interpreted, one exchange at a time.

Every exchange stops at a gate before the server takes it in, and again before the client reads the answer. Whoever
holds the gates decides who goes on, whose connection breaks, and who is killed where.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisDownError

Command = list[bytes]


class Gates(Protocol):
    """What lets exchanges pass."""

    async def gate(self) -> bool:
        """Return whether the connection still stands."""
        ...


@dataclass(eq=False)
class Session:
    """One connection, as the server sees it."""

    watched: dict[bytes, int] = field(default_factory=dict)
    queued: list[Command] | None = None


class MemoryRedis:
    """The server. `lose` goes back to an earlier moment, as a restart from a cut append-only file does."""

    def __init__(self) -> None:
        self._data: dict[bytes, Any] = {}
        self._versions: dict[bytes, int] = {}
        self._moments: list[dict[bytes, Any]] = [{}]
        self._clock = 0
        # Which life this is; connections belong to one.
        self.life = 1

    def client(self, gates: Gates) -> "Redis":
        """Return a client whose exchanges pass these gates."""
        options: dict[str, Any] = {"server": self, "gates": gates, "protocol": 2, "retry": Retry(NoBackoff(), 0)}
        pool = ConnectionPool(connection_class=MemoryConnection, **options)
        return Redis(connection_pool=pool)

    def lose(self, writes: int) -> None:
        """Restart without the last writes."""
        del self._moments[max(1, len(self._moments) - writes) :]
        self._data = _copy(self._moments[-1])
        self.life += 1

    def get(self, key: bytes) -> bytes | None:
        """Return what lies under a key."""
        found: bytes | None = self._data.get(key)
        return found

    def take(self, session: Session, command: Command) -> Any:
        """Do what one command says, and return the answer."""
        name, words = command[0].decode(), command[1:]
        if name == "MULTI":
            session.queued = []
            return b"OK"
        if name == "EXEC":
            return self._execute(session)
        if session.queued is not None and name != "WATCH":
            session.queued.append(command)
            return b"QUEUED"
        before = self._clock
        answer = getattr(self, f"_{name.lower().replace(' ', '_')}")(session, *words)
        if self._clock != before:
            self._moments.append(_copy(self._data))
        return answer

    def _execute(self, session: Session) -> list[Any] | None:
        queued, session.queued = session.queued or [], None
        watched, session.watched = session.watched, {}
        if any(self._versions.get(key, 0) != version for key, version in watched.items()):
            return None
        before, moments = self._clock, len(self._moments)
        answers = [self.take(session, command) for command in queued]
        if self._clock != before:
            # A transaction is in the file whole, or not at all.
            self._moments[moments:] = [_copy(self._data)]
        return answers

    def _wrote(self, key: bytes) -> None:
        self._clock += 1
        self._versions[key] = self._clock

    def _watch(self, session: Session, *keys: bytes) -> bytes:
        session.watched |= {key: self._versions.get(key, 0) for key in keys}
        return b"OK"

    def _unwatch(self, session: Session) -> bytes:
        session.watched = {}
        return b"OK"

    def _set(self, session: Session, key: bytes, value: bytes) -> bytes:
        self._data[key] = value
        self._wrote(key)
        return b"OK"

    def _mset(self, session: Session, *pairs: bytes) -> bytes:
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            self._set(session, key, value)
        return b"OK"

    def _mget(self, session: Session, *keys: bytes) -> list[Any]:
        return [self._data.get(key) for key in keys]

    def _del(self, session: Session, *keys: bytes) -> int:
        gone = [key for key in keys if self._data.pop(key, None) is not None]
        for key in gone:
            self._wrote(key)
        return len(gone)

    def _info(self, session: Session, section: bytes) -> bytes:
        return b"# Server\r\nrun_id:life-%d\r\n" % self.life

    def _hash(self, key: bytes) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = self._data.setdefault(key, {})
        return found

    def _hgetall(self, session: Session, key: bytes) -> list[bytes]:
        return [part for pair in self._data.get(key, {}).items() for part in pair]

    def _hget(self, session: Session, key: bytes, name: bytes) -> bytes | None:
        found: bytes | None = self._data.get(key, {}).get(name)
        return found

    def _hset(self, session: Session, key: bytes, *pairs: bytes) -> int:
        self._hash(key).update(zip(pairs[::2], pairs[1::2], strict=True))
        self._wrote(key)
        return len(pairs) // 2

    def _hsetnx(self, session: Session, key: bytes, name: bytes, value: bytes) -> int:
        return 0 if name in self._hash(key) else self._hset(session, key, name, value)

    def _hdel(self, session: Session, key: bytes, *names: bytes) -> int:
        gone = [name for name in names if self._hash(key).pop(name, None) is not None]
        if gone:
            self._wrote(key)
        return len(gone)


def _copy(data: dict[bytes, Any]) -> dict[bytes, Any]:
    return {key: dict(value) if isinstance(value, dict) else value for key, value in data.items()}


def unpacked(sent: bytes) -> Iterator[Command]:
    """Yield the commands of a request: each an array of bulk strings."""
    at = 0

    def number() -> int:
        nonlocal at
        first, at = at + 1, sent.index(b"\r\n", at) + 2
        return int(sent[first : at - 2])

    def word() -> bytes:
        nonlocal at
        size = number()
        first, at = at, at + size + 2
        return sent[first : first + size]

    while at < len(sent):
        yield [word() for _ in range(number())]


class MemoryConnection(AbstractConnection):
    """A connection without a socket; commands are handed over as they are."""

    def __init__(self, *, server: MemoryRedis, gates: Gates, **options: Any) -> None:
        super().__init__(**options)
        self._server = server
        self._gates = gates
        self._life = 0
        self._session = Session()
        self._answers: list[Any] = []
        self._writer: Any = MemoryTransport(self)

    @property
    def is_connected(self) -> bool:
        return bool(self._life)

    async def _connect(self) -> None: ...

    def _host_error(self) -> str:
        return "memory"

    async def connect(self) -> None:
        if not self._life:
            self._life, self._session, self._answers = self._server.life, Session(), []

    async def disconnect(self, *_: Any, **__: Any) -> None:
        self._life = 0

    def repr_pieces(self) -> list[tuple[str, Any]]:
        return [("life", self._life)]

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        await self.connect()
        self._answers = await self.exchange(command if isinstance(command, bytes) else b"".join(command))

    async def exchange(self, sent: bytes) -> list[Any]:
        """Return what a request is answered."""
        await self._pass()
        answers = [self._server.take(self._session, one) for one in unpacked(sent)]
        await self._pass()
        return answers

    async def read_response(self, *_: Any, **__: Any) -> Any:
        if not self._life:
            raise RedisDownError("the connection is closed")
        return self._answers.pop(0)

    async def can_read(self, *_: Any, **__: Any) -> bool:
        return False

    async def can_read_destructive(self) -> bool:
        return False

    async def _pass(self) -> None:
        stands = await self._gates.gate()
        if not stands or self._life != self._server.life:
            await self.disconnect()
            raise RedisDownError("the connection broke")


class MemoryTransport:
    """What lies under a connection that a line has taken over; stands for its writer as well."""

    def __init__(self, connection: MemoryConnection) -> None:
        self.transport = self
        self._connection = connection
        self._protocol: Any = asyncio.BaseProtocol()
        self._exchanges: set[asyncio.Task[None]] = set()

    def get_protocol(self) -> Any:
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def write(self, sent: bytes) -> None:
        exchange = asyncio.ensure_future(self._exchange(sent))
        self._exchanges.add(exchange)
        exchange.add_done_callback(self._exchanges.discard)

    def abort(self) -> None: ...

    def close(self) -> None: ...

    async def _exchange(self, sent: bytes) -> None:
        try:
            answers = await self._connection.exchange(sent)
        except RedisDownError as error:
            self._protocol.connection_lost(error)
            return
        arrived = b"".join(map(_packed, answers))
        while arrived:
            buffer = self._protocol.get_buffer(-1)
            piece, arrived = arrived[: len(buffer)], arrived[len(buffer) :]
            buffer[: len(piece)] = piece
            self._protocol.buffer_updated(len(piece))


def _packed(answer: Any) -> bytes:
    """Return an answer of strings, or of one, as it is sent."""
    if isinstance(answer, list):
        return b"*%d\r\n" % len(answer) + b"".join(map(_packed, answer))
    return b"$-1\r\n" if answer is None else b"$%d\r\n%b\r\n" % (len(answer), answer)
