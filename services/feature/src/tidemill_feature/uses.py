"""Which versions of views the models read that are still in use: a fold of `registry.models.v1`; pure."""

from tidemill_contracts.canonical import from_json
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_runtime.errors import Poison

TOPIC = "registry.models.v1"
# One that waits for its approval or its rollout may answer next.
_IN_USE = frozenset({"registered", "shadow", "canary", "champion"})


class Uses:
    """By model version, the hashes of the views that it reads."""

    def __init__(self) -> None:
        self._views: dict[bytes, frozenset[str]] = {}

    def fold(self, key: bytes | None, value: bytes | None) -> None:
        """Take in one record. Raises `Poison` for one that is no version."""
        name = key or b""
        if not value:
            self._views.pop(name, None)
            return
        try:
            record = from_json(value, registry.VersionRecord())
        except ValueError as error:
            raise Poison(Reason.UNDECODABLE, f"no version record: {error}") from error
        self._views[name] = frozenset(record.views.values()) if record.stage in _IN_USE else frozenset()

    @property
    def hashes(self) -> frozenset[str]:
        """The hashes of views that some model version in use reads."""
        return frozenset().union(*self._views.values())
