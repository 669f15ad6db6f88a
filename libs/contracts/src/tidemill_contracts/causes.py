"""The key of a cause of retraining: whoever asks for the same cause by any door makes the same key."""

import rfc8785

from tidemill_contracts.canonical import digest

DRIFT = "drift"
SCHEDULE = "schedule"
OPERATOR = "operator"


def cause_key(pipeline: str, kind: str, cause_id: str) -> str:
    """Return the key under which a cause starts one run.

    `cause_id`: the incident's id, the schedule's slot, or the operator's idempotency key.

    >>> cause_key("p", DRIFT, "1") == cause_key("p", SCHEDULE, "1")
    False
    """
    return digest(rfc8785.dumps([pipeline, kind, cause_id]))
