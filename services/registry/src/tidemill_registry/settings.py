"""The registry's settings: environment prefix `TIDEMILL_REGISTRY_`."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict
from tidemill_runtime.settings import PostgresSettings, ServiceSettings


class Settings(ServiceSettings):
    """What the registry needs to know, read once at start."""

    model_config = SettingsConfigDict(env_prefix="TIDEMILL_REGISTRY_")

    postgres: PostgresSettings = PostgresSettings()
    topic_replicas: Annotated[int, Field(ge=1, le=10)] = Field(
        default=1, description="copies of each topic that the registry creates; a cluster of brokers wants 3"
    )
