"""What a worker answers, compared with brute force."""

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import Any

import grpc
from machines import Worker
from oracle import MEANINGS, STATUSES, StreamLog, WrongError, compare
from tidemill_contracts.canonical import view_hash
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_contracts.feature.v1.feature_pb2_grpc import FeatureServiceStub
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_testkit.brute_force import Answer
from tidemill_testkit.ring_agreement import wanted_of
from workload import keys_of

PATIENCE_S = 60.0


async def check_served(
    worker: Worker,
    views: Sequence[tuple[definition.View, StreamLog]],
    ends: Sequence[progress.TopicPartitionOffset],
    instants: Sequence[int],
) -> bool:
    """Compare every feature of every entity, at some instants, with everything before `ends` taken in.

    Returns whether the worker lived to answer. Raises `WrongError`.
    """
    async with grpc.aio.insecure_channel(await worker.address()) as channel:
        stub: Any = FeatureServiceStub(channel)
        for view, log in views:
            for as_of_us in instants:
                keys, wanted = keys_of(view), wanted_of(view, log.stream, MEANINGS)
                asked = messages.ViewKeys(view=view.name, keys=[_entity(key) for key in keys])
                request = messages.GetFeaturesRequest(views=[asked], as_of_us=as_of_us, include=ends)
                response = await _asked(stub, request, view_hash(view, log.stream), worker)
                if response is None:
                    return False
                rows = response.views[0].rows
                for key, row, want in zip(keys, rows, log.answers(view, keys, as_of_us), strict=True):
                    compare(
                        f"{view.name} as of {as_of_us}", key, wanted, [_answer(value) for value in row.values], want
                    )
    return True


async def _asked(stub: Any, request: messages.GetFeaturesRequest, wanted: str, worker: Worker) -> Any:
    """Return the answer, once the worker serves this version of the view; None where it ends before."""
    began, error = monotonic(), ""
    while monotonic() - began < PATIENCE_S:
        try:
            response = await stub.GetFeatures(request, timeout=10)
            if response.views[0].view_hash == wanted:
                return response
            error = "an old version of the view answers"
        except grpc.aio.AioRpcError as refused:
            error = f"{refused.code()} {refused.details()}"
        if worker.ended.done():
            return None
        await asyncio.sleep(0.05)
    raise WrongError(f"no answer: {error}")


def _entity(key: Sequence[Any]) -> messages.EntityKey:
    values = [messages.Scalar(**{"string_value" if isinstance(v, str) else "int64_value": v}) for v in key]
    return messages.EntityKey(values=values)


def _answer(value: messages.FeatureValue) -> Answer:
    which = value.value.WhichOneof("value")
    found = None if which is None else getattr(value.value, which)
    return Answer(STATUSES[value.status], found, coarse=value.hop_accuracy)
