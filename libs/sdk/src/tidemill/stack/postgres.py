"""One PostgreSQL as a child process, run as an unprivileged user where the supervisor is root."""

import functools
import hashlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
from pathlib import Path

from tidemill.stack.health import postgres_answers
from tidemill.stack.ports import LOOPBACK
from tidemill.stack.programs import Account, Program
from tidemill.stack.spec import StackError
from tidemill.stack.state import write_private

USER = DATABASE = "tidemill"
OPEN_FOLDER = Path("/var/tmp")  # noqa: S108 - reached as any user; every folder made there is checked for its owner


def account() -> Account | None:
    """Return whom to run as: None for an ordinary user, `nobody` for root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError as error:
        raise StackError("PostgreSQL refuses to run as root and there is no user `nobody`; start as a user") from error
    return Account(uid=entry.pw_uid, gid=entry.pw_gid)


def enterable(path: Path) -> bool:
    """Say whether any user may pass through every folder down to the path."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents) if folder.is_dir())


def own_folder(name: str) -> Path:
    """Return a folder of ours under /var/tmp that others may enter and not write.

    Raises: StackError when somebody else already owns that name.
    """
    folder = OPEN_FOLDER / name
    folder.mkdir(exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise StackError(f"{folder} belongs to someone else; remove it and try again")
    folder.chmod(0o755)
    return folder


def data_folder(home: Path, user: Account | None) -> Path:
    """Return where the cluster lives: under the home, or under /var/tmp where `user` cannot enter the home."""
    if user is None or enterable(home):
        return home / "postgres"
    return own_folder(f"tidemill-data-{hashlib.sha256(str(home).encode()).hexdigest()[:12]}") / "postgres"


def usable_install(install: Path, user: Account | None) -> Path:
    """Return an installation that `user` can execute: the wheel's own, else a copy of it under /var/tmp."""
    if user is None or enterable(install / "bin"):
        return install
    mark = hashlib.sha256(f"{install}{(install / 'bin/postgres').stat().st_mtime_ns}".encode()).hexdigest()[:12]
    root = own_folder(f"tidemill-postgres-{mark}")
    copy = root / "install"
    if not copy.exists():
        scratch = root / f".copy-{os.getpid()}"
        shutil.copytree(install, scratch, symlinks=True)
        try:
            scratch.rename(copy)
        except OSError:  # another stack was faster; its copy is the same
            shutil.rmtree(scratch)
    return copy


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
        stop_signal=signal.SIGINT,
        # An orphaned postmaster must take its own children along, which SIGKILL would leave to find out by themselves.
        orphan_signal=signal.SIGQUIT,
    )
