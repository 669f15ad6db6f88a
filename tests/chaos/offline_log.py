"""What the offline role has archived, compared with the log and with brute force."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from oracle import MEANINGS, StreamLog, WrongError, compare, computed
from sqlalchemy.exc import OperationalError
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.topics import events_topic
from tidemill_features.cuts import EVERYTHING
from tidemill_features.expressions import Column
from tidemill_features.iceberg import Archive
from tidemill_features.log_reader import LogReader
from tidemill_features.offline import Rows, features_at
from tidemill_features.plan import compile_view
from tidemill_runtime.errors import Retryable
from tidemill_testkit.ring_agreement import wanted_of
from workload import keys_of

_BEGINNING_US = 0


class OfflineLog:
    """The tables of one run; everything blocks."""

    def __init__(self, dsn: str, folder: Path) -> None:
        warehouse = str(folder / "warehouse")
        # So often that a kill is likely to meet an append, a merge, or the end of a snapshot.
        often = {"ARCHIVE_EVERY_S": "0.1", "UPKEEP_EVERY_S": "0.3", "SNAPSHOT_KEEP_S": "0.5", "SKEW_EVERY_S": "0"}
        self.environment = {"ROLES": "offline", "POSTGRES__DSN": dsn, "WAREHOUSE": warehouse, **often}
        self._archive = Archive(dsn, warehouse)

    def reached(self, ends: Mapping[str, Mapping[int, int]]) -> bool:
        """Say whether everything before `ends`, by stream and partition, is archived. Raises `Retryable`."""
        wanted = {stream: {number: end for number, end in found.items() if end} for stream, found in ends.items()}
        try:
            return wanted == {stream: self._archive.offsets(events_topic(stream)) for stream in ends}
        except OperationalError as error:
            raise Retryable(str(error)) from error

    def check_rows(self, log: StreamLog) -> None:
        """Check that every event of a stream is one row, and nothing else is. Raises `WrongError`."""
        table, _ = self._archive.read(events_topic(log.stream.name), names=["_partition", "_offset", "id", "units"])
        rows = [] if table is None else zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
        found = Counter(rows)
        wanted = Counter((e.partition, e.offset, e.fields["id"], e.fields["units"]) for e in log.events)
        if found != wanted:
            raise WrongError(f"rows of {log.stream.name}: missing {wanted - found}, needless {found - wanted}")

    def check_view(self, view: definition.View, log: StreamLog, instants: Sequence[int]) -> None:
        """Compare rows of a training set, every entity at some instants, with brute force. Raises `WrongError`."""
        plan, keys, wanted = compile_view(view, log.stream), keys_of(view), wanted_of(view, log.stream, MEANINGS)
        archived = LogReader(self._archive, {}).stream(log.stream, sorted(plan.columns), _BEGINNING_US)
        plan = replace(plan, partitions=max(plan.partitions, archived.partitions))
        for as_of_us in instants:
            cuts = np.full((len(keys), plan.partitions), EVERYTHING)
            rows = Rows(list(_columns(keys)), np.full(len(keys), as_of_us), cuts)
            features = features_at(plan, archived.counted(), rows).features
            for place, (key, want) in enumerate(zip(keys, log.answers(view, keys, as_of_us), strict=True)):
                compare(f"offline {view.name} as of {as_of_us}", key, wanted, computed(features, place), want)


def _columns(keys: Sequence[tuple[Any, ...]]) -> Iterator[Column]:
    for values in zip(*keys, strict=True):
        kind: Any = np.object_ if isinstance(values[0], str) else np.int64
        yield Column(np.array(values, kind), np.zeros(len(values), np.bool_))
