"""Monitoring's settings: environment prefix `TIDEMILL_MONITORING_`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict
from tidemill_runtime.settings import PostgresSettings, ServiceSettings


class Settings(ServiceSettings):
    """Where monitoring joins and how long it remembers; what it watches for is in the pipeline's definition."""

    model_config = SettingsConfigDict(env_prefix="TIDEMILL_MONITORING_")

    postgres: PostgresSettings = PostgresSettings()
    group: str = Field("monitoring", description="Kafka consumer group of the join; the policy's is <group>-policy")
    datadir: Path = Field(Path("monitoring-data"), description="writable folder for Faust's own files")
    max_batch: Annotated[int, Field(ge=1, le=50_000)] = Field(5_000, description="records of one transaction")
    window_days: Annotated[int, Field(ge=1, le=90)] = Field(7, description="days of the rolling metrics")
    profile_days: Annotated[int, Field(ge=1, le=90)] = Field(
        14, description="days of served features compared with the version's reference"
    )
    idle_timeout_s: Annotated[float, Field(ge=0)] = Field(
        0.0, description="wall-clock silence after which a partition no longer holds the clock; 0: never (replays)"
    )
    lost_after_s: Annotated[float, Field(gt=0)] = Field(
        60.0, description="how long a number of an ASYNC prediction log may be missing before its record is called lost"
    )
    keep_predictions_days: Annotated[int, Field(ge=1)] = Field(
        14, description="event time that predictions and labels are kept after the label wait, for corrections"
    )
    keep_outcomes_days: Annotated[int, Field(ge=30)] = Field(
        400, description="event time that outcomes and metrics stay in PostgreSQL"
    )
