"""Where a running stack is reached."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# Up to the last @: whoever forgets to quote one in a password should not find its end on a screen.
_PASSWORD = re.compile(r"(://[^/@:]*:).*(?=@)|(\bpassword=)[^&\s]*")


@dataclass(frozen=True)
class ServiceAddress:
    """Host and port of one service's two doors."""

    grpc: str
    http: str


@dataclass(frozen=True)
class Endpoints:
    """Addresses of the servers and of every service that was asked for."""

    kafka: str
    redis: str
    postgres_dsn: str
    topic_prefix: str = "tidemill."
    services: Mapping[str, ServiceAddress] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Endpoints":
        services = {name: ServiceAddress(**address) for name, address in value.get("services", {}).items()}
        return cls(
            kafka=value["kafka"],
            redis=value["redis"],
            postgres_dsn=value["postgres_dsn"],
            topic_prefix=value.get("topic_prefix", "tidemill."),
            services=services,
        )


def redacted(url: str) -> str:
    """Return the URL with its password replaced, for people's eyes.

    >>> redacted("postgresql://tidemill:secret@127.0.0.1:5432/tidemill")
    'postgresql://tidemill:***@127.0.0.1:5432/tidemill'
    """
    return _PASSWORD.sub(r"\1\2***", url)
