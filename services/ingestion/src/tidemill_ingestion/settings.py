"""Ingestion's settings: environment prefix `TIDEMILL_INGESTION_`."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict
from tidemill_runtime.settings import MEBIBYTE, ServiceSettings


class Settings(ServiceSettings):
    """What ingestion needs to know, read once at start."""

    model_config = SettingsConfigDict(env_prefix="TIDEMILL_INGESTION_")

    max_in_flight_bytes: Annotated[int, Field(gt=0)] = Field(
        default=64 * MEBIBYTE, description="event data not yet acknowledged by Kafka; more is refused as overloaded"
    )
    max_batch_events: Annotated[int, Field(gt=0)] = Field(default=20_000, description="events of one request")
    max_http_bytes: Annotated[int, Field(gt=0)] = Field(default=16 * MEBIBYTE, description="body of one HTTP request")
    publish_timeout_s: Annotated[float, Field(gt=0, le=300)] = Field(
        default=10.0, description="longest wait for Kafka's acknowledgement; then the verdict is: send it again"
    )
    remembered_ids: Annotated[int, Field(ge=0)] = Field(
        default=50_000, description="(source, id) remembered per stream to recognise repeats"
    )
