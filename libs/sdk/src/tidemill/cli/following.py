"""Waits until the services go by what was registered, so that the next command may count on it."""

import os
from collections.abc import Mapping, Sequence
from time import monotonic

from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.progress.v1.progress_pb2_grpc import ProgressServiceStub

from tidemill.cli.targets import Target
from tidemill.clients.calls import CallError, Connection

_PATIENCE_S = 10.0
_DEFINITIONS = "registry.pipelines.v1"
# Who judges events, reads and requests by what is registered. Serving asks for nothing before a model is deployed.
_STAGES = (("ingestion", "publish"), ("feature", "online"), ("monitoring", "join"))


def behind(target: Target, registry: Connection) -> dict[str, str]:
    """Return the services that do not go by what is registered yet, and why; ten seconds are waited for all of them.

    A service whose address is not known here is not asked.
    """
    ends_s = monotonic() + _PATIENCE_S
    try:
        written = _waited(registry, "outbox", (), ends_s)
    except CallError as error:
        return {registry.service: str(error)}
    offsets = [one for one in written if one.topic == _DEFINITIONS]
    found = {}
    for service, stage in _STAGES if offsets else ():
        given = os.environ.get(f"TIDEMILL_{service.upper()}")
        if not target.knows(service, given):
            continue
        try:
            with target.connect(service, given) as peer:
                _waited(peer, stage, offsets, ends_s)
        except CallError as error:
            found[service] = str(error)
    return found


def told(waits: Mapping[str, str]) -> list[str]:
    """Return for a person who does not go by it yet."""
    return [f"not followed yet by {service}: {why}" for service, why in waits.items()]


def _waited(
    peer: Connection, stage: str, offsets: Sequence[progress.TopicPartitionOffset], ends_s: float
) -> Sequence[progress.TopicPartitionOffset]:
    """Return what a stage has written by the time that it has come to these offsets. Raises `CallError`."""
    method = ProgressServiceStub(peer.channel).WaitProgress
    request = progress.WaitProgressRequest(stage=stage, offsets=offsets)
    return peer.call(method, request, deadline_s=max(0.1, ends_s - monotonic())).written
