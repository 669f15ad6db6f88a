"""Which versions scored a request, packed for the row that waits for its label.

`head`: as_of (µs, UTC) and the deployment's revision; then per version its number, role and probability.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

from tidemill_contracts.serving.v1 import records_pb2 as serving

CHAMPION = int(serving.ROLE_CHAMPION)
CHALLENGER = int(serving.ROLE_CHALLENGER)
BASELINE = int(serving.ROLE_BASELINE)
ROLE_NAMES = {CHAMPION: "champion", CHALLENGER: "challenger", BASELINE: "baseline"}
# What its byte holds: a role that a later release adds is kept.
MAX_ROLE = 127

_HEAD = struct.Struct("<qi")
_SCORE = struct.Struct("<ibd")


class Score(NamedTuple):
    """One version's answer to one request."""

    version: int
    role: int
    probability: float


class Scores(NamedTuple):
    """Everything about a prediction that metrics and detectors need."""

    as_of_us: int
    deployment_revision: int
    by_version: tuple[Score, ...]

    def of_role(self, role: int) -> Score | None:
        """Return the first score with this role."""
        for score in self.by_version:
            if score.role == role:
                return score
        return None


def pack(record: serving.PredictionRecord) -> bytes:
    """Return the packed scores of a logged prediction; one that lists none was answered by the champion alone."""
    scores: Iterable[tuple[int, int, float]] = [
        (score.model_version, score.role, score.probability) for score in record.scores
    ] or [(record.model_version, CHAMPION, record.probability)]
    head = _HEAD.pack(record.as_of_us, record.deployment_revision)
    return head + b"".join([_SCORE.pack(*score) for score in scores])


def unpack(raw: bytes) -> Scores:
    """Return what `pack` packed."""
    as_of_us, revision = _HEAD.unpack_from(raw)
    return Scores(as_of_us, revision, tuple(map(Score._make, _SCORE.iter_unpack(raw[_HEAD.size :]))))
