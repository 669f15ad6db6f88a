"""Every aggregate of the language compiles, typed, to what the engine keeps."""

import json
from pathlib import Path

import pytest
from tidemill.definition import compile_file
from tidemill.definition.durations import size_bytes
from tidemill.definition.memory import memory_of
from tidemill_contracts.canonical import to_dict
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.plan import compile_view

FILE = """\
from datetime import datetime
import tidemill as tm
class Paid(tm.Event, stream="paid", key="payer", time="at"):
    payer: str
    amount: float | None
    units: int
    shop: str
    at: datetime
class Returned(tm.Event, stream="returned", key="payer", time="at"):
    payer: str
    amount: float
    at: datetime
payer = tm.View("payer", Paid, by="payer", budget="1MiB", features={{"x": {feature}}}, max_age="30d")
pipeline = tm.Pipeline(
    "p", request=Paid, features={{"payer": payer.on("payer")}},
    label=tm.Label(Returned, "amount > 15", by="payer", wait="36h"), learner=tm.XGBoost(), train=tm.Train(window="60d"),
)
"""


def compiled(tmp_path: Path, feature: str) -> definition.Definition:
    path = tmp_path / "paid.py"
    path.write_text(FILE.format(feature=feature))
    return compile_file(path)


@pytest.mark.parametrize(
    ("feature", "wanted"),
    [
        ('tm.rate("1m", where="units > 2")', {"function": "RATE", "type": "FLOAT64", "window_ms": "60000"}),
        ('tm.time_since_last("30d")', {"function": "TIME_SINCE_LAST", "type": "FLOAT64"}),
        ('tm.share("units > 2", "1h")', {"function": "MEAN", "type": "FLOAT64", "expression": "units > 2"}),
        ('tm.variance("units", "1h")', {"function": "VARIANCE", "type": "FLOAT64"}),
        ('tm.std("amount", "1h")', {"function": "STD", "type": "FLOAT64"}),
        ('tm.skew("amount", "1h")', {"function": "SKEW", "type": "FLOAT64"}),
        ('tm.first("shop", "1h")', {"function": "FIRST", "type": "STRING"}),
        ('tm.last_k("units", 3, "1h")', {"function": "LAST_K", "type": "INT64", "k": 3}),
        ('tm.histogram("amount", [0, 10.5], "1h")', {"function": "HISTOGRAM", "type": "INT64", "edges": [0.0, 10.5]}),
        ('tm.decayed_sum("units", "1h")', {"function": "DECAYED_SUM", "half_life_ms": "3600000"}),
        ('tm.ewma("amount", "1h", "1d")', {"function": "EWMA", "type": "FLOAT64", "window_ms": "86400000"}),
        ('tm.ewma("amount", "1h")', {"function": "EWMA", "window_ms": "57600000"}),
        ('tm.approx_distinct("shop", "1d")', {"function": "APPROX_DISTINCT", "type": "INT64"}),
        ('tm.quantile("amount", 0.95, "6h")', {"function": "QUANTILE", "type": "FLOAT64", "quantile": 0.95}),
        ('tm.top_k("shop", 2, "6h")', {"function": "TOP_K", "type": "STRING", "k": 2}),
    ],
)
def test_an_aggregate_compiles_to_its_function_type_and_options(
    tmp_path: Path, feature: str, wanted: dict[str, object]
) -> None:
    found = to_dict(compiled(tmp_path, feature).views[0].features[0])
    found["function"] = found["function"].removeprefix("AGGREGATION_FUNCTION_")
    found["type"] = found["type"].removeprefix("FIELD_TYPE_")
    assert wanted.items() <= found.items(), json.dumps(found)


@pytest.mark.parametrize("window", ["10s", "1m", "2h", "12h", "12d", "365d"])
def test_windows_from_ten_seconds_to_a_year_are_kept(tmp_path: Path, window: str) -> None:
    whole = compiled(tmp_path, f'tm.count("{window}")')
    ring = compile_view(whole.views[0], whole.streams[0]).rings[0]
    seconds = whole.views[0].features[0].window_ms // 1000
    assert ring.hop_us // 1_000_000 <= max(1, seconds / 12)
    assert ring.slots * ring.hop_us >= (seconds + 1) * 1_000_000


def test_several_numbers_are_as_many_features(tmp_path: Path) -> None:
    whole = compiled(tmp_path, 'tm.top_k("shop", 3, "6h")')
    assert [one.name for one in compile_view(whole.views[0], whole.streams[0]).features] == ["x.0", "x.1", "x.2"]


def test_memory_counts_headers_slots_and_full_sketches(tmp_path: Path) -> None:
    (fixed,) = memory_of(compiled(tmp_path, 'tm.count("2h")'))
    assert (fixed.rings, fixed.bytes_per_key) == ("26 × 5m", (8 + 26 * 3) * 8)
    assert fixed.most_bytes == fixed.bytes_per_key
    (sketched,) = memory_of(compiled(tmp_path, 'tm.approx_distinct("shop", "2h")'))
    assert sketched.most_bytes == sketched.bytes_per_key + 26 * 1_152
    assert sketched.budget_bytes == size_bytes("1MiB")
