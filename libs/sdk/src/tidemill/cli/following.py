"""Waits until the services have come to what was registered or sent, so that a command may count on it."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from time import monotonic

from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.progress.v1.progress_pb2_grpc import ProgressServiceStub

from tidemill.cli.targets import Target
from tidemill.clients.calls import CallError, Connection
from tidemill.clients.topics import TopicError, positions_now

_PATIENCE_S = 10.0
# A commit of the offline log takes a second, a backlog that it has to read first some more.
_ARCHIVING_S = 30.0
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


def unarchived(target: Target, topics: Sequence[str]) -> dict[str, str]:
    """Return who keeps the offline log from holding what the topics hold by now, and why; half a minute is waited.

    Nobody is asked where the address of Kafka or of the feature service is not known here.
    """
    given = {name: os.environ.get(f"TIDEMILL_{name.upper()}") for name in ("feature", "kafka")}
    if not all(target.knows(name, address) for name, address in given.items()):
        return {}
    ends_s = monotonic() + _ARCHIVING_S
    try:
        kafka = target.kafka(given["kafka"], os.environ.get("TIDEMILL_TOPIC_PREFIX"))
        offsets = asyncio.run(positions_now(kafka, topics))
        with target.connect("feature", given["feature"]) as peer:
            _waited(peer, "offline", offsets, ends_s)
    except (TopicError, CallError) as error:
        return {"kafka" if isinstance(error, TopicError) else "feature": str(error)}
    return {}


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
