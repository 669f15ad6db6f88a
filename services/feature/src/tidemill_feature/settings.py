"""The feature service's settings: environment prefix `TIDEMILL_FEATURE_`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict
from tidemill_features.layout import DEFAULT_GROUP, DEFAULT_PROJECT
from tidemill_runtime.settings import PostgresSettings, RedisSettings, ServiceSettings

from tidemill_feature.sizes import Sizes

Role = Literal["online", "offline"]

MEBIBYTE = 1024 * 1024


class Settings(ServiceSettings):
    """What the feature service needs to know, read once at start."""

    model_config = SettingsConfigDict(env_prefix="TIDEMILL_FEATURE_")

    redis: RedisSettings = RedisSettings()
    postgres: PostgresSettings = PostgresSettings()
    roles: Annotated[tuple[Role, ...], NoDecode] = Field(
        default=("online", "offline"),
        description="comma separated: online folds events into Redis, offline archives them in Iceberg",
    )
    project: str = Field(
        default=DEFAULT_PROJECT,
        pattern=r"^[a-z0-9-]+$",
        description="keeps the rings of several projects in one Redis apart",
    )
    group: str = Field(default=DEFAULT_GROUP, pattern=r"^[a-z0-9-]+$", description="the online role's consumer group")
    batch_records: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=2_000, description="records of one micro-batch; one flush to Redis each"
    )
    fetch_wait_ms: Annotated[int, Field(ge=1, le=1_000)] = Field(
        default=500, description="how long the online role's fetch may wait for more records"
    )
    session_ms: Annotated[int, Field(ge=500, le=300_000)] = Field(
        default=10_000, description="how long a silent worker of the online role keeps its partitions"
    )
    cache_mb: Annotated[int, Field(ge=1, le=65_536)] = Field(
        default=64, description="memory for shards in use; what was used longest ago gives way"
    )
    offline_group: str = Field(
        default="feature-offline", pattern=r"^[a-z0-9-]+$", description="the offline role's consumer group"
    )
    warehouse: Path = Field(default=Path("warehouse"), description="folder of the Iceberg tables")
    archive_every_s: Annotated[float, Field(gt=0)] = Field(
        default=30.0, description="how often the offline role commits; WaitProgress commits at once"
    )
    archive_buffer_mb: Annotated[int, Field(ge=1, le=65_536)] = Field(
        default=32, description="records taken in at which the offline role commits before its time"
    )
    upkeep_every_s: Annotated[float, Field(gt=0)] = Field(
        default=300.0, description="how often the offline role merges small files and lets old snapshots go"
    )
    upkeep_merge_mb: Annotated[int, Field(ge=1, le=1_024)] = Field(
        default=128, description="largest merged file, and most that one round of upkeep rewrites of one table"
    )
    snapshot_keep_s: Annotated[float, Field(ge=0)] = Field(
        default=900.0, description="how long a table's replaced snapshot can still be read; longer than a run reads"
    )
    read_rows_max: Annotated[int, Field(ge=1)] = Field(
        default=10_000, description="entities of one GetFeatures request"
    )
    http_body_max_bytes: Annotated[int, Field(ge=1)] = Field(
        default=MEBIBYTE * 4, description="largest body of one HTTP read"
    )

    join_records: Annotated[int, Field(ge=2)] = Field(
        default=20_000,
        description="a view that is built beside the others is folded with them once it is this near",
    )
    old_view_grace_s: Annotated[float, Field(ge=0)] = Field(
        default=3_600.0,
        description="how long an old version of a view is folded on once the new one answers, if no model reads it",
    )

    skew_every_s: Annotated[float, Field(ge=0)] = Field(
        default=86_400.0,
        description="event time of one period whose served features are compared with the offline log; 0 for never",
    )
    skew_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1 / 16, description="share of the join keys whose predictions are compared, by their hash"
    )
    skew_rows_max: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=1_000, description="predictions of one pipeline compared at once, those of the smallest hashes"
    )
    skew_events_max: Annotated[int, Field(ge=1)] = Field(
        default=5_000_000, description="events read for one comparison at most; a period that needs more is left out"
    )
    skew_pause_s: Annotated[float, Field(ge=0)] = Field(
        default=300.0, description="wall-clock rest between comparisons, so that a replay is not slowed by them"
    )

    @field_validator("roles", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @property
    def cache_bytes(self) -> int:
        return self.cache_mb * MEBIBYTE

    @property
    def online_sizes(self) -> Sizes:
        return Sizes(self.project, self.group, self.cache_bytes, self.batch_records, self.join_records)

    @property
    def archive_buffer_bytes(self) -> int:
        return self.archive_buffer_mb * MEBIBYTE

    @property
    def upkeep_merge_bytes(self) -> int:
        return self.upkeep_merge_mb * MEBIBYTE
