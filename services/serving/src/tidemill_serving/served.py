"""One pipeline as it is served at one moment: request schema, features, versions and split; immutable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tidemill_contracts.reasons import Reason
from tidemill_contracts.serving.v1 import records_pb2 as records
from tidemill_features.layout import LayoutError
from tidemill_features.reader import Place, Reader, Request, Result
from tidemill_features.vector import PipelineVector, VectorRows
from tidemill_models.encoding import Encoding, Matrix
from tidemill_models.scorer import Scorer
from tidemill_runtime.errors import Poison, Retryable

from tidemill_serving.request import RequestSchema, Values
from tidemill_serving.routing import Split

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Version:
    """A loaded version and why it scores."""

    number: int
    manifest_hash: str
    role: "records.Role.ValueType"
    encoding: Encoding
    scorer: Scorer

    def score(self, matrix: Matrix) -> Floats:
        """Return the probability of each row of a matrix in this version's encoding; float64[n]."""
        return self.scorer.predict_proba(matrix)


class FeatureRead(NamedTuple):
    """Features of some requests, and how far the rings had come."""

    vector: VectorRows
    positions: Mapping[Place, int]


class ReadElsewhereError(Exception):
    """The rings that were fetched are no longer those to be read; asked again, the reader fetches the right ones."""


@dataclass(frozen=True)
class Served:
    """Everything that a request to a pipeline needs; a request that began with one ends with it."""

    pipeline: str
    definition_hash: str
    revision: int
    schema: RequestSchema
    vector: PipelineVector
    reader: Reader
    split: Split
    # The champion first.
    versions: Sequence[Version]
    # Of each baseline that this definition cannot compute, why.
    left_out: Sequence[str] = ()

    @property
    def champion(self) -> Version:
        return self.versions[0]

    @cached_property
    def challenger(self) -> Version | None:
        """The version under rollout, if any."""
        return next((one for one in self.versions if one.role == records.ROLE_CHALLENGER), None)

    def answering(self, prediction_id: str) -> Version:
        """Return the version that answers a request."""
        challenger = self.challenger
        if challenger is not None and self.split.challenger_answers(prediction_id):
            return challenger
        return self.champion

    def ask(self, requests: Sequence[Values]) -> Request:
        """Return what to fetch for these requests."""
        return self.reader.request(self.vector.lookups(requests))

    def positions(self, request: Request, raws: Sequence[bytes | None]) -> Mapping[Place, int]:
        """Return how far the rings have come. Raises `Retryable` where that is not what it must be."""
        return self._result(request, raws, 0).positions

    def unready(self, request: Request, raws: Sequence[bytes | None]) -> tuple[list[str], bool]:
        """Return the views that are not built yet, and whether the reader moved on. Raises `Retryable`."""
        result = self._result(request, raws, 0)
        return result.unready, result.moved

    def read(
        self, request: Request, raws: Sequence[bytes | None], as_of_us: int, requests: Sequence[Values]
    ) -> FeatureRead:
        """Return the features of the requests from what was fetched.

        Raises `Retryable` where the rings are not what they must be: half built, or of another format;
        `ReadElsewhereError` where they were built anew beside the old ones.
        """
        result = self._result(request, raws, as_of_us)
        if result.unready and result.moved:
            raise ReadElsewhereError
        if result.unready:
            raise Retryable(
                f"view {', '.join(result.unready)} cannot be read: it is being built from the log, or it is the former "
                "version of one of whose fields the type changed, or null became allowed, and cannot be computed any "
                f"more; then train another model: tidemill retrain {self.pipeline} --why ...",
                retry_after_s=1.0,
            )
        rows = self.vector.rows(result.views, self.vector.columns(requests), len(requests))
        return FeatureRead(rows, result.positions)

    def _result(self, request: Request, raws: Sequence[bytes | None], as_of_us: int) -> Result:
        try:
            return self.reader.values(request, raws, as_of_us)
        except LayoutError as error:
            raise Retryable(f"the features in Redis cannot be read: {error}") from error

    def score(self, rows: VectorRows) -> dict[int, list[float]]:
        """Return the probabilities of each version by its number. Raises `Poison` where a score is no number."""
        # Versions of one definition share their encoding more often than not (see `assembly`): encode once.
        matrices: dict[int, Matrix] = {}
        for version in self.versions:
            if id(version.encoding) not in matrices:
                matrices[id(version.encoding)] = version.encoding.encode(rows.numbers, rows.categories)
        scores = {version.number: version.score(matrices[id(version.encoding)]) for version in self.versions}
        for number, probabilities in scores.items():
            if not np.isfinite(probabilities).all():
                raise Poison(Reason.HANDLER, f"{self.pipeline} version {number} gave a score that is no number")
        return {number: probabilities.tolist() for number, probabilities in scores.items()}
