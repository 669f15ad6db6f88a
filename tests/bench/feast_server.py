"""Feast's Python feature server with Redis, in a virtual environment of its own: the baseline of `feature.read_*`.

`python feast_server.py fill REPO HOST PORT PASSWORD` is run inside that environment: it declares five feature views of
ten floats and writes a thousand entities into each. The rest of this module runs outside of it.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

VERSION = "0.67.0"
ENVIRONMENT = Path("build/feast")
INSTALL_S, START_S = 600, 90
Tied = Callable[[Sequence[str]], list[str]]
VIEWS = ("payer", "card", "shop", "city", "device")
FEATURES, ENTITIES = 10, 1_000


class MissingError(Exception):
    """Feast cannot be had here; the message says why."""


def install() -> Path:
    """Return the environment's folder of programs; made once. Raises `MissingError`."""
    programs = ENVIRONMENT / "bin"
    if (programs / "feast").exists():
        return programs.absolute()
    # uv names itself to what it runs; the Makefile's own is on no PATH.
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise MissingError("there is no uv to install it with: run `make bench`, or put uv on the PATH")
    steps = (
        [uv, "venv", "--quiet", "--python", "3.11", str(ENVIRONMENT)],
        [uv, "pip", "install", "--quiet", "--python", str(programs / "python"), f"feast[redis]=={VERSION}"],
    )
    for step in steps:
        try:
            subprocess.run(step, check=True, timeout=INSTALL_S, capture_output=True)
        except (subprocess.SubprocessError, OSError) as error:
            shutil.rmtree(ENVIRONMENT, ignore_errors=True)
            raise MissingError(f"it does not install: {error}") from error
    return programs.absolute()


@contextmanager
def serving(redis_url: str, folder: Path, tied: Tied) -> Iterator[tuple[str, int, int]]:
    """Serve from database 1 of a Redis; yields host, port and process. Raises `MissingError`.

    `tied`: makes of a command one that ends with this process, which the environment of Feast does not know.
    """
    programs = install()
    where = urlsplit(redis_url)
    filled = [str(programs / "python"), str(Path(__file__).absolute()), "fill", str(folder)]
    filled += [str(where.hostname), str(where.port), where.password or ""]
    subprocess.run(tied(filled), check=True, timeout=START_S)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = int(listening.getsockname()[1])
    command = [str(programs / "feast"), "--chdir", str(folder), "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--no-access-log"]
    with (folder / "feast.log").open("wb") as log:
        process = subprocess.Popen(tied(command), stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(port, process)
            yield "127.0.0.1", port, process.pid
        finally:
            process.terminate()
            process.wait(20)


def _wait(port: int, process: "subprocess.Popen[bytes]") -> None:
    ends = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError as error:
            if process.poll() is not None or time.monotonic() > ends:
                raise MissingError("its server does not start") from error
            time.sleep(0.2)
        else:
            return


def fill(repository: str, host: str, port: str, password: str) -> None:
    """Declare and write everything; runs inside Feast's environment."""
    import pandas
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64

    secret = f",password={password}" if password else ""
    Path(repository, "feature_store.yaml").write_text(
        f"project: bench\nregistry: {repository}/registry.db\nprovider: local\n"
        f'online_store:\n  type: redis\n  connection_string: "{host}:{port}{secret},db=1"\n'
        "offline_store:\n  type: file\nentity_key_serialization_version: 3\n"
    )
    store = FeatureStore(repository)
    names = [f"f{number}" for number in range(FEATURES)]
    for view in VIEWS:
        source = Path(repository, f"{view}.parquet")
        rows = {name: [float(number % 97) for number in range(ENTITIES)] for name in names}
        frame = pandas.DataFrame({f"{view}_id": [f"{view}-{number}" for number in range(ENTITIES)], **rows}).assign(
            event_timestamp=pandas.Timestamp.now(tz="UTC")
        )
        frame.to_parquet(source)
        entity = Entity(name=view, join_keys=[f"{view}_id"], value_type=ValueType.STRING)
        schema = [Field(name=name, dtype=Float64) for name in names]
        feed = FileSource(name=f"{view}_source", path=str(source), timestamp_field="event_timestamp")
        store.apply([entity, FeatureView(name=view, entities=[entity], schema=schema, source=feed, online=True)])
        store.write_to_online_store(view, frame)


if __name__ == "__main__":
    fill(*sys.argv[2:])
