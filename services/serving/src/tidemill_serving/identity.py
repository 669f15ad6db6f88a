"""The names of a prediction: derived from what was asked, so that two runs over the same requests compare."""

from uuid import UUID, uuid5

# The namespace of prediction ids: part of the contract, never to change.
PREDICTIONS = UUID("6f1f4f0e-3a0c-5c39-9d5b-2f6d0a8f7c11")


def prediction_id(pipeline: str, join_key: str, as_of_us: int) -> str:
    """Return the UUIDv5 of (pipeline, join key, as_of).

    >>> prediction_id("flight-delays", "1-EWR", 0)
    '050449c2-5211-5bff-882e-fb16c1861995'
    """
    # Neither a pipeline's name nor a number holds the separator: no two triples spell alike, whatever the key is.
    return str(uuid5(PREDICTIONS, f"{pipeline}\x1f{join_key}\x1f{as_of_us}"))
