"""What is published of measured skew: one record of `feature.skew.v1` per pipeline and period; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tidemill_contracts.canonical import to_json
from tidemill_contracts.cloudevents import Attributes, to_headers
from tidemill_contracts.feature.v1 import records_pb2 as records
from tidemill_contracts.instants import format_us, to_timestamp
from tidemill_runtime.outgoing import Outgoing

from tidemill_feature.skew import Difference, Period

TOPIC = "feature.skew.v1"
SOURCE = "tidemill/feature"
TYPE = "tidemill.skew.v1"
EXAMPLES_MAX = 5


@dataclass(frozen=True)
class Sample:
    """Which predictions were compared. `left_out`: sampled ones that were not, by reason."""

    pipeline: str
    definition_hash: str
    period: Period
    share: float
    prediction_id: Sequence[str]
    as_of_us: Sequence[int]
    left_out: Mapping[str, int]


def skew_record(sample: Sample, found: Sequence[Difference], emitted_us: int) -> records.SkewRecord:
    """Return the record of a sample."""
    by_source: dict[tuple[str, str], list[Difference]] = {}
    for one in found:
        by_source.setdefault((one.source, one.view), []).append(one)
    views = [_view(source, view, mine) for (source, view), mine in by_source.items()]
    record = records.SkewRecord(
        pipeline=sample.pipeline,
        definition_hash=sample.definition_hash,
        window_start=to_timestamp(sample.period.from_us),
        window_end=to_timestamp(sample.period.until_us),
        sampled_share=sample.share,
        rows=len(sample.prediction_id),
        compared=sum(view.compared for view in views),
        differing=sum(view.differing for view in views),
        views=views,
        examples=_examples(sample, found),
        left_out={reason: count for reason, count in sample.left_out.items() if count},
        emitted_at=to_timestamp(emitted_us),
    )
    record.summary = _summary(record, sample)
    return record


def outgoing(record: records.SkewRecord) -> Outgoing:
    """Return the record on its way to the topic; a period that is measured again has the same identity."""
    start, end = record.window_start.ToMicroseconds(), record.window_end.ToMicroseconds()
    attributes = Attributes(
        id=f"{record.pipeline}/{format_us(start)}",
        source=SOURCE,
        type=TYPE,
        time_us=end,
        subject=record.pipeline,
    )
    return Outgoing(TOPIC, to_json(record), key=record.pipeline.encode(), headers=to_headers(attributes))


def _view(source: str, view: str, found: Sequence[Difference]) -> records.ViewSkew:
    features = [_feature(one) for one in found]
    compared, differing = sum(one.compared for one in features), sum(one.differing for one in features)
    share = differing / max(1, compared)
    return records.ViewSkew(
        source=source, view=view, compared=compared, differing=differing, share=share, features=features
    )


def _feature(one: Difference) -> records.FeatureSkew:
    compared, differing = one.compared, int(one.differs.sum())
    return records.FeatureSkew(
        feature=one.name,
        compared=compared,
        differing=differing,
        share=differing / max(1, compared),
        missing=int(one.missing.sum()),
        extra=int(one.extra.sum()),
        largest_difference=one.largest,
    )


def _examples(sample: Sample, found: Sequence[Difference]) -> list[records.SkewExample]:
    """Return the first differing row of each feature, up to the bound."""
    examples: list[records.SkewExample] = []
    for one in found:
        if len(examples) < EXAMPLES_MAX and one.differs.any():
            row = int(np.flatnonzero(one.differs)[0])
            example = records.SkewExample(
                prediction_id=sample.prediction_id[row],
                feature=one.name,
                as_of=to_timestamp(sample.as_of_us[row]),
                served=one.served.shown(row),
                recomputed=one.recomputed.shown(row),
            )
            examples.append(example)
    return examples


def _summary(record: records.SkewRecord, sample: Sample) -> str:
    period = f"from {format_us(sample.period.from_us)} to {format_us(sample.period.until_us)}"
    of = f"{record.rows:,} sampled predictions {period}"
    if not record.compared:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(record.left_out.items()))
        return f"{record.pipeline}: none of the sampled predictions {period} could be compared ({reasons})."
    if not record.differing:
        return f"{record.pipeline}: all {record.compared:,} feature values of {of} are what the offline log gives."
    # An expression over a view's features differs because they do.
    view = max(record.views, key=lambda one: (bool(one.view and one.differing), one.share))
    worst = max(view.features, key=lambda one: one.share)
    place = f"the rings of view {view.view}" if view.view else "the request's transforms"
    return (
        f"{record.pipeline}: {record.differing:,} of {record.compared:,} feature values of {of} differ from the "
        f"offline log, most of all {worst.feature} ({worst.share:.0%}); look at {place}."
    )
