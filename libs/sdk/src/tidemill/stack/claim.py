"""Who may run the stack of a folder: whoever holds its lock, from before the start until the supervisor ends."""

import fcntl
import os

from tidemill.stack.plan import Layout


def claim(layout: Layout) -> int | None:
    """Return the folder's lock as a descriptor to hand to the supervisor; None where somebody else holds it."""
    layout.home.mkdir(parents=True, exist_ok=True)
    lock = os.open(layout.lock_file, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
