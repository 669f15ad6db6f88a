"""What was asked for: one stack's name, folder, processes and existing servers."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SERVERS = ("kafka", "postgres", "redis")
SERVICES = ("registry", "ingestion", "feature", "training", "serving", "monitoring")
DEFAULT_NAME = "local"
DEFAULT_PREFIX = "tidemill."
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
INSTALL = "install it with `pip install 'tidemill[stack]'`"


class StackError(Exception):
    """The stack cannot do what was asked; the message says what to do about it."""


@dataclass(frozen=True)
class External:
    """Servers that already exist and stand in for the embedded ones."""

    kafka: str | None = None
    redis: str | None = None
    postgres: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "External":
        """Read TIDEMILL_KAFKA, TIDEMILL_REDIS and TIDEMILL_POSTGRES; an empty value means none."""
        return cls(
            kafka=environment.get("TIDEMILL_KAFKA") or None,
            redis=environment.get("TIDEMILL_REDIS") or None,
            postgres=environment.get("TIDEMILL_POSTGRES") or None,
        )

    def given(self) -> frozenset[str]:
        return frozenset(name for name in SERVERS if getattr(self, name) is not None)


@dataclass(frozen=True)
class StackSpec:
    """Everything the supervisor needs to know; written to `spec.json`, since arguments are public."""

    name: str
    home: Path
    services: tuple[str, ...] = SERVICES
    external: External = field(default_factory=External)
    topic_prefix: str = DEFAULT_PREFIX
    service_environment: Mapping[str, str] = field(default_factory=dict)
    ready_deadline_s: float = 120.0

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "home": str(self.home)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "StackSpec":
        value: dict[str, Any] = json.loads(text)
        return cls(
            **{
                **value,
                "home": Path(value["home"]),
                "services": tuple(value["services"]),
                "external": External(**value["external"]),
            }
        )


def services_of(only: str | None) -> tuple[str, ...]:
    """Return the services that `only` names: everything, `servers` (none), or a comma-separated choice.

    >>> services_of("servers")
    ()
    >>> services_of("serving,registry")
    ('registry', 'serving')
    """
    if only is None or only == "all":
        return SERVICES
    if only == "servers":
        return ()
    wanted = {name.strip() for name in only.split(",")}
    if unknown := wanted - set(SERVICES):
        raise StackError(f"no service named {', '.join(sorted(unknown))}; choose from servers, {', '.join(SERVICES)}")
    return tuple(name for name in SERVICES if name in wanted)


def default_home(name: str) -> Path:
    """Return the stack's folder: `.tidemill/<name>` under the working directory."""
    if not _NAME.fullmatch(name):
        raise StackError(f"{name!r} cannot name a stack: use letters, digits, dashes and underscores")
    return Path(".tidemill", name).absolute()


def start_command(name: str) -> str:
    """Return what starts a stack.

    >>> start_command("local"), start_command("other")
    ('tidemill up', 'tidemill up --name other')
    """
    return "tidemill up" if name == DEFAULT_NAME else f"tidemill up --name {name}"
