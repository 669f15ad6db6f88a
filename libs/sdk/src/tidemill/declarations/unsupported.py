"""What the definition language names and this release does not build: kept as a value, refused by name at check."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tidemill.declarations.origin import Origin, here


@dataclass(frozen=True)
class Unsupported:
    """Something that this release does not do; `instead` says what does."""

    name: str
    instead: str = ""
    origin: Origin = field(default_factory=here, repr=False)

    @property
    def message(self) -> str:
        return f"{self.name} is not in this release" + (f"; {self.instead}" if self.instead else "")


def unsupported(name: str, instead: str = "") -> Callable[..., Unsupported]:
    """Return a constructor that takes anything, so that `check` can name what it stands for."""

    def construct(*_args: object, **_options: object) -> Unsupported:
        return Unsupported(name, instead)

    construct.__name__ = name.removeprefix("tm.")
    return construct
