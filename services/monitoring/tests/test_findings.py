"""What evaluations read back from PostgreSQL."""

from collections import Counter

import asyncpg
import pytest
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_monitoring.adapters.findings import PROFILE_ROWS, served
from tidemill_monitoring.adapters.schema import create_tables

HOUR = 3_600_000_000
DAY = 24 * HOUR

pytestmark = pytest.mark.servers


async def test_the_sample_of_a_day_is_of_the_whole_day_though_ids_rise_with_time(database: str) -> None:
    count = 3 * PROFILE_ROWS
    connection = await asyncpg.connect(database)
    await create_tables(connection)
    asked = [(f"{number:09d}", number * DAY // count) for number in range(count)]
    rows = [
        ("late", name, "a", at_us, b"", serving.PredictionRecord(as_of_us=at_us).SerializeToString())
        for name, at_us in asked
    ]
    await connection.copy_records_to_table("prediction", schema_name="monitoring", records=rows)
    found = await served(connection, "late", 0, DAY)
    assert len(found) == PROFILE_ROWS
    hours = Counter(one.as_of_us // HOUR for one in found)
    # About 833 an hour; the standard deviation is 23.
    assert set(hours) == set(range(24))
    assert all(700 < rows < 970 for rows in hours.values())
    assert found == await served(connection, "late", 0, DAY), "the same whenever it is asked"
    await connection.close()
