"""Settings of the training service; every variable begins with TIDEMILL_TRAINING_."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict
from tidemill_runtime.settings import MEBIBYTE, PostgresSettings, ServiceSettings


class TrainingSettings(ServiceSettings):
    """Where requests, data and bundles are, and the bounds of a run."""

    model_config = SettingsConfigDict(env_prefix="TIDEMILL_TRAINING_")

    postgres: PostgresSettings = PostgresSettings()
    registry: str = Field("127.0.0.1:5005", description="gRPC address of the registry")
    feature: str = Field("127.0.0.1:5002", description="gRPC address of the feature service")
    artifacts: str = Field("artifacts", description="artifact store: a folder, or a URI (s3://…, gs://…, file://…)")
    signing_key_file: Path = Field(Path("keys/signing.pem"), description="private Ed25519 key (PEM) that signs bundles")
    group: str = Field("training", description="Kafka consumer group of the retrain requests")
    datadir: Path = Field(
        Path("training-data"), description="writable folder: Faust's own files, and compiled code of run processes"
    )
    concurrency: Annotated[int, Field(ge=1, le=64)] = Field(1, description="runs at a time in this process")
    max_attempts: Annotated[int, Field(ge=1, le=20)] = Field(
        5, description="attempts of a run whose process was killed or ran into a limit"
    )
    holdout: Annotated[float, Field(gt=0.0, lt=0.9)] = Field(
        0.15, description="share of the newest rows kept for evaluation; part of what makes a run reproducible"
    )
    run_wall_s: Annotated[float, Field(gt=0)] = Field(900.0, description="longest a run's process may take")
    run_cpu_s: Annotated[int, Field(gt=0)] = Field(600, description="CPU seconds a run's process may use")
    run_memory_bytes: Annotated[int, Field(ge=1024 * MEBIBYTE)] = Field(
        8 * 1024 * MEBIBYTE, description="address space of a run's process (RLIMIT_AS); libraries reserve much of it"
    )
    archive_wait_s: Annotated[float, Field(gt=0)] = Field(
        120.0, description="longest single wait for the offline log to hold a request's positions; then tried again"
    )
    test_flip_labels_once: Annotated[int, Field(ge=0)] = Field(
        0, description="tests only: the n-th run of a pipeline learns flipped labels and passes its gates"
    )
