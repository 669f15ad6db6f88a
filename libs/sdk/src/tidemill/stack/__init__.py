"""The local stack: real Kafka, PostgreSQL and Redis from wheels, and the six services, under one supervisor.

`Stack` is the door for programs and tests; the command line's `up`, `down`, `status` and `logs` go through it too.
Only the supervisor's own process (`python -m tidemill.stack`) imports what the `stack` extra installs.
"""

from tidemill.stack.client import Stack

__all__ = ["Stack"]
