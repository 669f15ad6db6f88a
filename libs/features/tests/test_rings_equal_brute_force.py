"""Live rings, the offline twin and brute force agree, for any log, any batches, any crash and any moment."""

import math
import struct
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.admission import Admission, duplicate_mask, late_mask, newest_so_far, rules_of
from tidemill_features.cuts import cuts_by_time
from tidemill_features.expressions import Column
from tidemill_features.finalise import FeatureValues
from tidemill_features.fold import Events, Shard, ViewShards
from tidemill_features.layout import Checkpoint, view_id
from tidemill_features.offline import Rows, features_at
from tidemill_features.plan import compile_view
from tidemill_features.reader import Lookup, Place, Reader
from tidemill_testkit.brute_force import Answer, Logged, Wanted, brute_force, counted

SECOND = 1_000_000
PARTITIONS = 2
TOPIC_ID = bytes(range(16))
STATUSES = {1: "PRESENT", 2: "NULL", 3: "NOT_FOUND", 4: "OUTSIDE_MAX_AGE"}
FIELDS = {
    "who": definition.FIELD_TYPE_STRING,
    "zone": definition.FIELD_TYPE_INT64,
    "at": definition.FIELD_TYPE_TIMESTAMP,
    "amount": definition.FIELD_TYPE_FLOAT64,
    "units": definition.FIELD_TYPE_INT64,
    "label": definition.FIELD_TYPE_STRING,
}


def stream(policy: Any = definition.LATE_POLICY_DROP, dedup_s: int = 30, lateness_s: int = 20) -> definition.Stream:
    return definition.Stream(
        name="paid",
        fields=[definition.Field(name=n, type=t, nullable=n not in ("at",)) for n, t in FIELDS.items()],
        key_field="who",
        time_field="at",
        partitions=PARTITIONS,
        lateness_ms=lateness_s * 1000,
        late_policy=policy,
        dedup_window_ms=dedup_s * 1000,
    )


def aggregation(name: str, function: Any, window_s: int, expression: str = "", where: str = "") -> Any:
    kind = definition.FIELD_TYPE_INT64 if not expression else FIELDS.get(expression, definition.FIELD_TYPE_FLOAT64)
    return definition.Aggregation(
        name=name, function=function, window_ms=window_s * 1000, expression=expression, where=where, type=kind
    )


VIEW = definition.View(
    name="payer",
    stream="paid",
    entity=["who", "zone"],
    max_age_ms=40_000,
    accuracy=definition.ACCURACY_HOP,
    features=[
        aggregation("n_12", definition.AGGREGATION_FUNCTION_COUNT, 12),
        aggregation("n_60_big", definition.AGGREGATION_FUNCTION_COUNT, 60, where="amount > 1"),
        aggregation("sum_12", definition.AGGREGATION_FUNCTION_SUM, 12, "amount"),
        aggregation("units_20", definition.AGGREGATION_FUNCTION_SUM, 20, "units"),
        aggregation("mean_60", definition.AGGREGATION_FUNCTION_MEAN, 60, "amount"),
        aggregation("min_20", definition.AGGREGATION_FUNCTION_MIN, 20, "amount"),
        aggregation("max_60", definition.AGGREGATION_FUNCTION_MAX, 60, "units"),
        aggregation("last_60", definition.AGGREGATION_FUNCTION_LAST, 60, "amount"),
        aggregation("last_label", definition.AGGREGATION_FUNCTION_LAST, 0, "label"),
    ],
)
PLAN = compile_view(VIEW, stream())


def wanted_features() -> list[Wanted]:
    names = {1: "count", 2: "sum", 3: "mean", 4: "min", 5: "max", 6: "last"}
    found = []
    for part, feature in zip(VIEW.features, PLAN.features, strict=True):
        ring = PLAN.rings[feature.ring]
        found.append(
            Wanted(
                part.name,
                names[part.function],
                feature.window_us,
                ring.hop_us,
                ring.slots,
                value=itemgetter(part.expression) if part.expression else None,
                where=(lambda f: f["amount"] is not None and f["amount"] > 1) if part.where else None,
                exact_age=not part.window_ms,
            )
        )
    return found


WANTED = wanted_features()
KEYS = [("ann", 1), ("ann", 2), ("bob", 1), ("nobody", 7), (None, 1)]
AMOUNTS = st.one_of(st.none(), st.sampled_from([0.1, 0.2, 0.3, -0.0, 0.0, 1e16, -1e16, 1.5]), st.floats(-9, 9))
# Few moments, so that events share slots and times, and some lie on the edges of buckets.
TIMES = st.one_of(
    st.integers(0, 9).map(lambda s: s * SECOND // 2),
    st.integers(-70, 70).map(lambda s: s * SECOND),
    st.integers(0, 40).map(lambda s: s * SECOND - 1),
)


@st.composite
def logs(draw: Any) -> list[Logged]:
    records = []
    drift = draw(st.integers(0, 2))
    for partition in range(PARTITIONS):
        offset = 0
        for index in range(draw(st.integers(0, 14))):
            offset += draw(st.sampled_from([1, 1, 1, 3]))
            fields = {
                "who": draw(st.sampled_from(["ann", "bob", "ann", None])),
                "zone": draw(st.sampled_from([1, 2, 1])),
                "amount": draw(AMOUNTS),
                "units": draw(st.one_of(st.none(), st.integers(-5, 5))),
                "label": draw(st.sampled_from([None, "", "a", "bé", "long text"])),
            }
            identity = draw(st.sampled_from([f"{partition}-{offset}", "same", "twin"]))
            event_us = draw(TIMES) + index * drift * 4 * SECOND
            records.append(Logged(partition, offset, event_us, identity, fields))
    return records


def columns_of(records: Sequence[Logged]) -> dict[str, Column]:
    columns = {}
    for name, kind in FIELDS.items():
        values = [r.event_us if name == "at" else r.fields[name] for r in records]
        columns[name] = column(values, kind)
    return columns


def column(values: Sequence[Any], kind: Any) -> Column:
    nulls = np.array([value is None for value in values], np.bool_)
    if kind == definition.FIELD_TYPE_STRING:
        return Column(np.array(["" if v is None else v for v in values], object), nulls)
    dtype = np.float64 if kind == definition.FIELD_TYPE_FLOAT64 else np.int64
    return Column(np.array([0 if v is None else v for v in values], dtype), nulls)


def events_of(records: Sequence[Logged]) -> Events:
    def numbers(name: str) -> Any:
        return np.array([getattr(r, name) for r in records], np.int64)

    return Events(numbers("partition"), numbers("offset"), numbers("event_us"), columns_of(records))


class Worker:
    """A feature worker without Kafka and Redis: `store` is what survives it."""

    def __init__(self, store: dict[bytes, bytes], rules_stream: definition.Stream, capacity: int) -> None:
        self.store = store
        self.shards = ViewShards(PLAN, "p", capacity)
        self.rules = rules_of(rules_stream)
        self.admissions: dict[int, Admission] = {}
        self.next: dict[int, int] = {}

    def assign(self, log: Sequence[Logged]) -> dict[int, int]:
        """Restore every partition; return where reading starts."""
        starts = {}
        for partition in range(PARTITIONS):
            raw = self.store.get(b"checkpoint:%d" % partition)
            point = Checkpoint.unpack(raw) if raw else None
            self.admissions[partition] = Admission(self.rules, *([point.newest_event_us] if point else []))
            self.next[partition] = point.next_offset if point else 0
            starts[partition] = point.dedup_low_offset if point else 0
        return starts

    def work(self, records: Sequence[Logged], crash: str) -> None:
        """Take in one batch; the worker may die before it writes, or between half the shards and the checkpoint."""
        counting: list[Logged] = []
        for partition in range(PARTITIONS):
            mine = [r for r in records if r.partition == partition]
            old = [r for r in mine if r.offset < self.next[partition]]
            new = [r for r in mine if r.offset >= self.next[partition]]
            admission = self.admissions[partition]
            admission.remember([r.offset for r in old], times(old), [r.identity for r in old])
            verdict = admission.admit([r.offset for r in new], times(new), [r.identity for r in new])
            kept = ~verdict.duplicate if self.rules.late_counts else ~(verdict.duplicate | verdict.late)
            counting += [r for r, keep in zip(new, kept.tolist(), strict=True) if keep]
            if new:
                self.next[partition] = new[-1].offset + 1
        events = events_of(counting)
        entities = self.shards.entities(events)
        wanted = [Shard(r.partition, e) for r, e in zip(counting, entities, strict=True) if e is not None]
        for shard in self.shards.missing(wanted):
            self.shards.load(shard, [self.store.get(key) for key in self.shards.keys(shard)], TOPIC_ID)
        self.shards.fold(events, entities)
        dirty = self.shards.dirty(self.next)
        if crash == "between":
            self.store.update(list(dirty.items())[::2])
        if not crash:
            self.store.update(dirty)
            self.shards.written()
            for partition, admission in self.admissions.items():
                at = self.next[partition]
                low, views = admission.low_offset(at), frozenset({view_id(PLAN.hash)})
                point = Checkpoint(TOPIC_ID, at, low, admission.newest_us, views)
                self.store[b"checkpoint:%d" % partition] = point.pack()


def times(records: Sequence[Logged]) -> Any:
    return np.array([r.event_us for r in records], np.int64)


def run_live(log: Sequence[Logged], rules: definition.Stream, sizes: Sequence[int], crashes: Sequence[str]) -> Any:
    """Feed a log in batches of any size; after a crash a new worker begins from what the store says."""
    store: dict[bytes, bytes] = {}
    worker = Worker(store, rules, capacity=40)
    at = worker.assign(log)
    step = 0
    while True:
        size, crash = sizes[step % len(sizes)], crashes[step] if step < len(crashes) else ""
        step += 1
        batch: list[Logged] = []
        for partition in range(PARTITIONS):
            batch += [r for r in log if r.partition == partition and r.offset >= at[partition]][:size]
        if not batch:
            return store
        worker.work(batch, crash)
        at = {p: max([r.offset + 1 for r in batch if r.partition == p], default=at[p]) for p in range(PARTITIONS)}
        if crash:
            worker = Worker(store, rules, capacity=40)
            at = worker.assign(log)


def read_live(store: Mapping[bytes, bytes], as_of_us: int) -> list[FeatureValues]:
    reader = Reader([PLAN], project="p")
    request = reader.request([Lookup("payer", KEYS)])
    places = {Place("events.paid", p): b"checkpoint:%d" % p for p in range(PARTITIONS)}
    raws = [store.get(key) for key in request.keys[: -len(places)]] + [store.get(k) for k in places.values()]
    result = reader.values(request, raws, as_of_us)
    return result.views[0].features


def read_offline(
    log: Sequence[Logged], rules: definition.Stream, as_of_us: int, cut: tuple[int, int]
) -> list[FeatureValues]:
    ordered = sorted(log, key=lambda r: (r.partition, r.offset))
    keep = np.zeros(len(ordered), np.bool_)
    codes = {identity: code for code, identity in enumerate({r.identity for r in ordered})}
    for partition in range(PARTITIONS):
        mine = np.array([i for i, r in enumerate(ordered) if r.partition == partition], np.int64)
        event_us = np.array([ordered[i].event_us for i in mine], np.int64)
        before = newest_so_far(event_us)
        identities = np.array([codes[ordered[i].identity] for i in mine], np.int64)
        bad = duplicate_mask(identities, event_us, before, rules.dedup_window_ms * 1000)
        if rules.late_policy != definition.LATE_POLICY_CORRECT:
            bad |= late_mask(event_us, before, rules.lateness_ms * 1000)
        keep[mine] = ~bad
    events = events_of([r for r, kept in zip(ordered, keep.tolist(), strict=True) if kept])
    keys = [column([key[0] for key in KEYS], FIELDS["who"]), column([key[1] for key in KEYS], FIELDS["zone"])]
    cuts = np.full((len(KEYS), PARTITIONS), cut, np.int64)
    return features_at(PLAN, events, Rows(keys, np.full(len(KEYS), as_of_us, np.int64), cuts)).features


def answers(features: Sequence[FeatureValues]) -> list[list[Answer]]:
    """Return [key][feature], floats as they are."""
    return [
        [Answer(STATUSES[int(f.status[row])], None if f.nulls[row] else f.values[row]) for f in features]
        for row in range(len(KEYS))
    ]


def bits(answer: Answer) -> tuple[str, Any]:
    value = answer.value
    if isinstance(value, float):
        return answer.status, struct.pack("<d", value)
    return answer.status, value if value is None or isinstance(value, str) else int(value)


def expected(log: Sequence[Logged], rules: definition.Stream, as_of_us: int) -> list[list[Answer]]:
    late_counts = rules.late_policy == definition.LATE_POLICY_CORRECT
    kept = counted(log, rules.dedup_window_ms * 1000, rules.lateness_ms * 1000, late_counts=late_counts)

    def events(key: tuple[Any, ...]) -> list[Logged]:
        return [r for r in kept if None not in key and (r.fields["who"], r.fields["zone"]) == key]

    return [[brute_force(w, events(key), as_of_us, PLAN.max_age_us) for w in WANTED] for key in KEYS]


CRASHES = st.lists(st.sampled_from(["", "before", "between"]), max_size=8)
POLICIES = st.sampled_from([definition.LATE_POLICY_DROP, definition.LATE_POLICY_CORRECT])
MOMENTS = st.lists(TIMES, min_size=1, max_size=3)


@settings(max_examples=250, deadline=None)
@given(
    log=logs(),
    policy=POLICIES,
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    crashes=CRASHES,
    moments=MOMENTS,
    cut=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_live_equals_offline_bit_for_bit_and_both_equal_brute_force(
    log: list[Logged],
    policy: Any,
    sizes: list[int],
    crashes: list[str],
    moments: list[int],
    cut: tuple[int, int],
) -> None:
    rules = stream(policy)
    seen = [r for r in log if r.offset < cut[r.partition]]
    store = run_live(seen, rules, sizes, crashes)
    for as_of_us in moments:
        live = answers(read_live(store, as_of_us))
        offline = answers(read_offline(log, rules, as_of_us, cut))
        assert [[bits(a) for a in row] for row in live] == [[bits(a) for a in row] for row in offline]
        for row, want in zip(live, expected(seen, rules, as_of_us), strict=True):
            for name, got, answer in zip([w.name for w in WANTED], row, want, strict=True):
                assert got.status == answer.status, (name, as_of_us)
                assert got.value == answer.value, (name, as_of_us)
                if answer.exact is not None and isinstance(answer.value, float):
                    assert math.isclose(got.value, float(answer.exact), rel_tol=1e-9, abs_tol=64.0), name


@settings(max_examples=60, deadline=None)
@given(log=logs(), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3), crashes=CRASHES)
def test_stored_bytes_do_not_depend_on_batches_or_crashes(
    log: list[Logged], sizes: list[int], crashes: list[str]
) -> None:
    def shards(store: dict[bytes, bytes]) -> dict[bytes, bytes]:
        # The offset that a shard includes is the batch's; everything else is the events'.
        return {k: v[:32] + v[40:] for k, v in store.items() if not k.startswith(b"checkpoint")}

    assert shards(run_live(log, stream(), sizes, crashes)) == shards(run_live(log, stream(), [100], []))


@settings(max_examples=80, deadline=None)
@given(log=logs(), moments=MOMENTS)
def test_a_row_without_a_prediction_sees_the_rings_as_they_were_when_its_moment_came(
    log: list[Logged], moments: list[int]
) -> None:
    rules = stream()
    for as_of_us in moments:
        ordered = sorted(log, key=lambda r: (r.partition, r.offset))
        place = [np.array([getattr(r, n) for r in ordered], np.int64) for n in ("partition", "offset", "event_us")]
        cuts = cuts_by_time(place[0], place[1], place[2], np.array([as_of_us]), PARTITIONS)[0]
        seen = [r for r in log if r.offset < cuts[r.partition]]
        assert all(r.event_us <= as_of_us for r in seen)
        live = answers(read_live(run_live(seen, rules, [5], []), as_of_us))
        want = expected(seen, rules, as_of_us)
        assert [[(a.status, a.value) for a in row] for row in live] == [[(a.status, a.value) for a in r] for r in want]


def test_a_null_key_or_an_unknown_entity_is_not_found() -> None:
    reader = Reader([PLAN])
    for keys in ([(None, 1)], [("nobody", 1)], []):
        request = reader.request([Lookup("payer", keys)])
        result = reader.values(request, [None] * len(request.keys), 0)
        assert [f.status.tolist() for f in result.views[0].features] == [[3] * len(keys)] * len(WANTED)
        assert result.positions == {Place("events.paid", 0): 0, Place("events.paid", 1): 0}
