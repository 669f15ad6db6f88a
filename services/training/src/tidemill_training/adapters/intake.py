"""The Faust agent's decision: one request taken into the ledger, once per cause."""

from collections.abc import Callable

import structlog
from tidemill_runtime.batches import Record
from tidemill_runtime.positions import Partition

from tidemill_training.adapters.ledger import Ledger
from tidemill_training.metrics import requests_taken
from tidemill_training.requests import TOPIC, decode_request

log = structlog.get_logger(__name__)


class Intake:
    """Takes requests in; `wake` tells the executor that there is a new run."""

    def __init__(self, ledger: Ledger, wake: Callable[[], None]) -> None:
        self._ledger = ledger
        self._wake = wake

    async def decide(self, record: Record) -> None:
        """Accept one record. Raises `Poison` for what is no request, `Retryable` where PostgreSQL is away."""
        request = decode_request(record.value)
        created = await self._ledger.accept(Partition(TOPIC, record.partition), record.offset, request)
        requests_taken.labels("run" if created else "cause_known").inc()
        log.info("request", request_id=request.request_id, cause=request.cause_kind, created=created)
        self._wake()
