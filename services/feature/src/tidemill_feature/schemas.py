"""Which features each model version is given, in its order, as predictions are logged: `registry.models.v1`; pure."""

from collections.abc import Mapping

from tidemill_contracts.canonical import from_json
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_runtime.errors import Poison

# Name, and whether it is a category.
Schema = tuple[tuple[str, bool], ...]


class Schemas:
    """The schema of every version of every pipeline."""

    def __init__(self) -> None:
        self._schemas: dict[tuple[str, int], Schema] = {}

    def fold(self, value: bytes | None) -> None:
        """Take in one record. Raises `Poison` for one that is no version."""
        if not value:
            return
        try:
            record = from_json(value, registry.VersionRecord())
        except ValueError as error:
            raise Poison(Reason.UNDECODABLE, f"no version record: {error}") from error
        columns = tuple((column.name, column.category) for column in record.features)
        self._schemas[record.pipeline, record.version] = columns

    def of(self, pipeline: str) -> Mapping[int, Schema]:
        """Return the schemas of a pipeline's versions."""
        return {version: schema for (name, version), schema in self._schemas.items() if name == pipeline}
