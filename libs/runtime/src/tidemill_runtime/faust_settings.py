"""Settings of a Faust app that avoid every internal topic and every surprise."""

from pathlib import Path
from typing import Any

import faust

from tidemill_runtime.settings import KafkaSettings


def faust_settings(kafka: KafkaSettings, group: str, datadir: Path) -> dict[str, Any]:
    """Return what an app is made with."""
    return {
        "broker": [f"kafka://{address}" for address in kafka.bootstrap.split(",")],
        "broker_credentials": _credentials(kafka),
        "key_serializer": "raw",
        "value_serializer": "raw",
        "autodiscover": False,
        "web_enabled": False,
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "reply_create_topic": False,
        "table_standby_replicas": 0,
        "datadir": str(datadir),
        "stream_wait_empty": True,
        "broker_session_timeout": 10,
        "broker_heartbeat_interval": 2,
        "broker_request_timeout": 20,
        "broker_rebalance_timeout": 20,
        "producer_request_timeout": 10,
        "consumer_auto_offset_reset": "earliest",
        "consumer_group_instance_id": kafka.instance and f"{group}.{kafka.instance}",
        "stream_buffer_maxsize": 64,
        "broker_max_poll_records": 64,
    }


def _credentials(kafka: KafkaSettings) -> Any:
    if kafka.security_protocol == "PLAINTEXT":
        return None
    tls = kafka.tls() if kafka.security_protocol.endswith("SSL") else None
    if kafka.security_protocol == "SSL":
        return faust.SSLCredentials(context=tls)
    assert kafka.sasl_password is not None
    return faust.SASLCredentials(
        username=kafka.sasl_username,
        password=kafka.sasl_password.get_secret_value(),
        mechanism=kafka.sasl_mechanism,
        ssl_context=tls,
    )
