"""Where the tables of the offline log are: looked up by the service, so that a run's process needs no database."""

from collections.abc import Sequence
from typing import Any

import asyncpg
from tidemill_features.archive import CATALOGUE_QUERY, NAMESPACE, table_name
from tidemill_runtime.postgres import translated


class Catalogue:
    """The Iceberg catalogue in PostgreSQL; raises `Retryable` where it is away."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def places(self, topics: Sequence[str]) -> dict[str, str]:
        """Return, by the tables' names, where the newest metadata of these topics' tables is; some may have none."""
        async with translated(), self._pool.acquire() as connection:
            try:
                rows = await connection.fetch(CATALOGUE_QUERY, NAMESPACE)
            except asyncpg.UndefinedTableError:
                # Nothing was ever archived.
                return {}
        wanted = set(map(table_name, topics))
        return {row["table_name"]: row["metadata_location"] for row in rows if row["table_name"] in wanted}
