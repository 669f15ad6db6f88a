"""The fixtures give each test a real corner of its own."""

from importlib import import_module
from importlib.util import find_spec

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from hypothesis import HealthCheck, settings
from tidemill_testkit.plugin import Servers


def test_no_law_fails_because_an_example_took_long() -> None:
    assert settings().deadline is None
    assert HealthCheck.too_slow in settings().suppress_health_check


@pytest.mark.servers
async def test_a_topic_under_the_test_prefix_takes_a_record(servers: Servers, topic_prefix: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers.kafka)
    await admin.start()
    await admin.create_topics([NewTopic(topic_prefix + "numbers", 1, 1)])
    async with AIOKafkaProducer(bootstrap_servers=servers.kafka, enable_idempotence=True) as producer:
        record = await producer.send_and_wait(topic_prefix + "numbers", b"one")
    await admin.delete_topics([topic_prefix + "numbers"])
    await admin.close()
    assert record.offset == 0


@pytest.mark.servers
@pytest.mark.skipif(find_spec("asyncpg") is None, reason="the testkit alone brings no PostgreSQL driver")
async def test_each_test_gets_an_empty_database(database: str) -> None:
    connection = await import_module("asyncpg").connect(database)
    tables = await connection.fetchval("select count(*) from pg_tables where schemaname = 'public'")
    await connection.close()
    assert tables == 0
