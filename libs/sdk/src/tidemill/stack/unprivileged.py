"""Where and as whom PostgreSQL runs when the supervisor is root: it refuses to be root itself."""

import hashlib
import os
import pwd
import shutil
import stat
from pathlib import Path

from tidemill.stack.programs import Account
from tidemill.stack.spec import StackError

OPEN_FOLDER = Path("/var/tmp")  # noqa: S108 - reached as any user; every folder made there is checked for its owner
STAND_IN = "tidemill-data-"
MARK = "home"


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
    remove_abandoned()
    folder = own_folder(outside(home).name)
    (folder / MARK).write_text(str(home))
    return folder / "postgres"


def remove_abandoned() -> None:
    """Delete the stand-ins of homes that are gone, such as temporary ones."""
    for folder in OPEN_FOLDER.glob(f"{STAND_IN}*"):
        swept = OPEN_FOLDER / f".swept-{os.getpid()}-{folder.name}"
        try:
            if not _is_abandoned(folder):
                continue
            # Whoever moves it away deletes it: stacks that start at one time sweep at one time.
            folder.rename(swept)
        except FileNotFoundError:
            continue
        shutil.rmtree(swept)


def _is_abandoned(folder: Path) -> bool:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or not (folder / MARK).exists():
        return False
    return not Path((folder / MARK).read_text()).exists()


def outside(home: Path) -> Path:
    """Return the folder under /var/tmp that stands in for a home that others cannot enter."""
    return OPEN_FOLDER / f"{STAND_IN}{hashlib.sha256(str(home).encode()).hexdigest()[:12]}"


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
