"""Deleting topics, to the end: Kafka answers before they are gone."""

from collections.abc import Collection
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient

from tidemill_testkit.eventually import aeventually


async def delete_topics(client_kwargs: dict[str, Any], names: Collection[str]) -> None:
    """Delete (physical) topics, and return once they are gone."""
    admin = AIOKafkaAdminClient(**client_kwargs)
    await admin.start()

    async def gone() -> bool:
        return not set(names) & set(await admin.list_topics())

    try:
        await admin.delete_topics(list(names))
        await aeventually(gone, 20, claim=f"{', '.join(sorted(names))} are deleted")
    finally:
        await admin.close()
