"""Talk to a running supervisor: one JSON line asks, one JSON line answers, over a private Unix socket."""

import asyncio
import hashlib
import json
import os
import socket
import stat
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tidemill.stack.spec import StackError

REQUEST_BYTES_MAX = 65_536
# Of a Unix socket's path: 107 on Linux, 103 on macOS.
SOCKET_BYTES_MAX = 103
Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


def remove_stale(path: Path) -> None:
    """Remove the socket that a supervisor left; the caller knows that none runs."""
    path.unlink(missing_ok=True)


def socket_path(home: Path) -> Path:
    """Return where the supervisor of this home listens: a short path, since a Unix socket's is bounded.

    Raises: StackError when the folder belongs to someone else, or the folder for temporary files is too deep.
    """
    folder = Path(tempfile.gettempdir(), f"tidemill-{os.geteuid()}")
    path = folder / f"{hashlib.sha256(str(home).encode()).hexdigest()[:16]}.sock"
    if len(os.fsencode(path)) > SOCKET_BYTES_MAX:
        raise StackError(f"{path} is too long for a socket: let TMPDIR name a folder with a shorter path")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StackError(f"{folder} must be a folder of yours with mode 0700; remove it and try again")
    return path


async def serve(path: Path, handler: Handler) -> asyncio.Server:
    """Answer requests until the server is closed; a StackError becomes `{"error": …}`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            if not line:
                return
            try:
                reply = await handler(json.loads(line))
            except (StackError, ValueError, KeyError) as error:
                reply = {"error": str(error)}
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        finally:
            writer.close()

    return await asyncio.start_unix_server(answer, path=str(path), limit=REQUEST_BYTES_MAX)


def ask(path: Path, request: dict[str, Any], *, deadline_s: float) -> dict[str, Any]:
    """Send one request and return the answer.

    Raises: StackError when the supervisor is not there, does not answer in time, or refuses.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(deadline_s)
            connection.connect(str(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
    except OSError as error:
        raise StackError(f"the supervisor does not answer ({error})") from error
    if not line:
        raise StackError("the supervisor closed the connection without an answer")
    reply: dict[str, Any] = json.loads(line)
    if "error" in reply:
        raise StackError(reply["error"])
    return reply
