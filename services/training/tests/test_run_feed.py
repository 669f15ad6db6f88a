"""What is said of a run while it goes on: in order, bounded, and never waited for."""

from prometheus_client import REGISTRY
from tidemill_contracts.training.v1 import training_pb2 as training
from tidemill_runtime.producer import Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_testkit.ports import free_address
from tidemill_training.adapters.run_feed import RunFeed


def dropped() -> float:
    return REGISTRY.get_sample_value("tidemill_training_records_dropped_total") or 0.0


async def test_what_no_kafka_takes_is_neither_waited_for_nor_kept_and_is_counted() -> None:
    before = dropped()
    nowhere = KafkaSettings(bootstrap=free_address())
    async with Producer(nowhere) as producer, RunFeed(producer).telling("cause") as telling:
        for place in range(1_000):
            telling.say(training.RunRecord(run_id="run-1", progress=place / 1_000))
        assert 900 < dropped() - before < 1_000
    assert dropped() - before == 1_000
