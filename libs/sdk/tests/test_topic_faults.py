"""What a command says where the client of Kafka fails."""

import pytest
from aiokafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    TopicAuthorizationFailedError,
)
from tidemill.clients.topics import KafkaTarget, kafka_fault


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (NotLeaderForPartitionError(), True),
        (KafkaTimeoutError(), True),
        (KafkaError("no node is known"), True),
        (MessageSizeTooLargeError(), False),
        (TopicAuthorizationFailedError(), False),
    ],
)
async def test_whoever_may_try_again_is_told_so(error: KafkaError, passes: bool) -> None:
    fault = await kafka_fault(KafkaTarget("127.0.0.1:1"), error)
    assert (not fault.reached, str(fault).endswith("; try again")) == (passes, passes)
