"""The audit trail in PostgreSQL."""

from tidemill_contracts.canonical import from_json
from tidemill_contracts.registry.v1 import records_pb2 as records

from tidemill_registry.adapters.ledger import Ledgers


class AuditBook:
    """Answers who did what."""

    def __init__(self, ledgers: Ledgers) -> None:
        self._ledgers = ledgers

    async def list(self, place: str, limit: int) -> list[records.AuditRecord]:
        """Return the newest records of an object, or of all, oldest of them first, as the chain runs."""
        async with self._ledgers.reading() as connection:
            rows = await connection.fetch(
                "SELECT record FROM audit WHERE $1 = '' OR object = $1 ORDER BY sequence DESC LIMIT $2", place, limit
            )
        return [from_json(row["record"].encode(), records.AuditRecord()) for row in reversed(rows)]
