"""One PostgreSQL as a child process, run as an unprivileged user where the supervisor is root."""

import functools
import os
import shutil
import signal
import subprocess
from pathlib import Path

from tidemill.stack.health import postgres_answers
from tidemill.stack.ports import LOOPBACK
from tidemill.stack.programs import Account, Program
from tidemill.stack.spec import StackError
from tidemill.stack.state import write_private

USER = DATABASE = "tidemill"


def dsn(port: int, password: str) -> str:
    return f"postgresql://{USER}:{password}@{LOOPBACK}:{port}/{DATABASE}"


def configuration(port: int) -> str:
    """Return what is appended to postgresql.conf.

    `fsync` is off: the local stack promises to survive the death of any process, which needs no disk flush, and not
    that of the machine. `synchronous_commit` stays on, since WAL that is still in shared memory dies with the server.
    """
    settings = {
        "listen_addresses": f"'{LOOPBACK}'",
        "port": port,
        "unix_socket_directories": "''",
        "max_connections": 100,
        "shared_buffers": "'64MB'",
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "on",
        "max_wal_size": "'512MB'",
        "autovacuum_naptime": "'30s'",
        "log_min_messages": "warning",
        "timezone": "'UTC'",
        "log_timezone": "'UTC'",
    }
    return "".join(f"{name} = {value}\n" for name, value in settings.items())


def prepare(data: Path, port: int, password: str, *, install: Path, user: Account | None) -> None:
    """Create the cluster once and write its configuration."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    if user is not None:
        os.chown(data, user.uid, user.gid)
    cluster = data / "cluster"
    if not (cluster / "PG_VERSION").exists():
        shutil.rmtree(cluster, ignore_errors=True)  # an initdb that was cut short
        _initdb(cluster, password, install=install, user=user)
        with (cluster / "postgresql.conf").open("a") as file:
            file.write("include_if_exists 'tidemill.conf'\n")
    write_private(cluster / "tidemill.conf", configuration(port))
    if user is not None:
        os.chown(cluster / "tidemill.conf", user.uid, user.gid)


def _initdb(cluster: Path, password: str, *, install: Path, user: Account | None) -> None:
    secret = cluster.parent / "password"
    write_private(secret, password)
    if user is not None:
        os.chown(secret, user.uid, user.gid)
    arguments = ("--auth=scram-sha-256", f"--username={USER}", f"--pwfile={secret}", "--encoding=UTF8")
    scratch = cluster.with_name("cluster.new")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        _run(
            (str(install / "bin/initdb"), *arguments, "--locale=C", "--no-sync", f"--pgdata={scratch}"),
            user=user,
            stdin="",
        )
        create = (str(install / "bin/postgres"), "--single", "-D", str(scratch), "postgres")
        _run(create, user=user, stdin=f"CREATE DATABASE {DATABASE};\n")
    finally:
        secret.unlink(missing_ok=True)
    scratch.rename(cluster)


def _run(command: tuple[str, ...], *, user: Account | None, stdin: str) -> None:
    done = subprocess.run(  # noqa: S603 - our own arguments
        command,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        user=None if user is None else user.uid,
        group=None if user is None else user.gid,
        extra_groups=None if user is None else [],
    )
    if done.returncode != 0:
        raise StackError(f"PostgreSQL could not be set up ({command[0]}): {done.stdout}{done.stderr}")


def program(data: Path, port: int, password: str, *, install: Path, user: Account | None) -> Program:
    """Return the server's process; SIGINT is its fast shutdown (SIGTERM would wait for every client to leave)."""
    return Program(
        name="postgres",
        command=(str(install / "bin/postgres"), "-D", str(data / "cluster")),
        ready=functools.partial(postgres_answers, dsn(port, password)),
        account=user,
        folder=Path("/"),  # its user may not enter the supervisor's folder
        stop_signal=signal.SIGINT,
        # An orphaned postmaster must take its own children along, which SIGKILL would leave to find out by themselves.
        orphan_signal=signal.SIGQUIT,
    )
