"""Settings of the serving service; every variable begins with TIDEMILL_SERVING_."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict
from tidemill_features.layout import DEFAULT_GROUP, DEFAULT_PROJECT
from tidemill_runtime.settings import RedisSettings, ServiceSettings


class ServingSettings(ServiceSettings):
    """Where bundles and features are, and the bounds of a request."""

    model_config = SettingsConfigDict(env_prefix="TIDEMILL_SERVING_")

    redis: RedisSettings = RedisSettings()
    artifacts: str = Field("artifacts", description="artifact store: a folder, or a URI (s3://…, gs://…, file://…)")
    verify_key_file: Path = Field(
        Path("keys/verify.pem"), description="public Ed25519 key (PEM) that bundles must match"
    )
    cache: Path | None = Field(
        None,
        description="folder for the last good deployments and bundles; absent: a restart needs Kafka and the store",
    )
    project: str = Field(DEFAULT_PROJECT, description="project whose rings are read; must equal the feature service's")
    feature_group: str = Field(DEFAULT_GROUP, description="feature worker group whose checkpoints count")
    log: Literal["async", "durable"] = Field("async", description="log mode of requests that name none")
    log_queue: Annotated[int, Field(gt=0)] = Field(20_000, description="ASYNC records that may wait for Kafka")
    durable_timeout_s: Annotated[float, Field(gt=0)] = Field(
        15.0, description="longest wait for Kafka's acknowledgement before DURABLE answers UNAVAILABLE"
    )
    feature_timeout_s: Annotated[float, Field(gt=0)] = Field(
        5.0, description="longest wait for Redis before a prediction answers UNAVAILABLE"
    )
    views_wait_s: Annotated[float, Field(gt=0)] = Field(
        600.0, description="longest wait for the views of a new deployment to be built before it counts as refused"
    )
    max_batch_rows: Annotated[int, Field(gt=0)] = Field(5_000, description="rows of one PredictBatch")
    max_waiting_rows: Annotated[int, Field(gt=0)] = Field(20_000, description="rows queued before RESOURCE_EXHAUSTED")
    micro_batch_rows: Annotated[int, Field(gt=0)] = Field(
        256, description="rows of concurrent requests scored together"
    )
