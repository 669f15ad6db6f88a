"""The tables of docs/features.md: hop classes and aggregates, from what the engine's plan of a view says of each."""

import inspect
from dataclasses import dataclass
from pathlib import Path

import tidemill
from tidemill.declarations.unsupported import Unsupported
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.decay import MAX_HALF_LIVES, MAX_HALF_LIVES_PER_HOP
from tidemill_features.hops import HOPS_MS, HOPS_PER_WINDOW, MAX_SLOTS, slots_of
from tidemill_features.plan import PlanError, ViewPlan, compile_view

PAGE = Path(__file__).resolve().parent / "features.md"
HOUR_MS = 3_600_000
WORD_BYTES = 8
_ACCURACIES = (definition.ACCURACY_HOP, definition.ACCURACY_EXACT)
_PREFIX = "AGGREGATION_FUNCTION_"
_EXPRESSIONS = {"count": "", "rate": "", "time_since_last": "", "top_k": "key"}
_NOTHING = "null"
_EXACT = "none"
_ROUNDING = "rounding of a float sum"
_MERGED = "rounding of pairwise merged moments"
_WEIGHTED = "rounding of a weighted float sum"
_HALF_LIVES = f"hop at most {MAX_HALF_LIVES_PER_HOP} half-lives, window and hop together at most {MAX_HALF_LIVES:,}"
# What the aggregates that need more than a window are declared with.
_PARAMETERS = {"edges": [1.0, 2.0], "quantile": 0.5, "k": 3, "half_life_ms": 3_600_000}

STREAM = definition.Stream(
    name="s",
    fields=[
        definition.Field(name="key", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="x", type=definition.FIELD_TYPE_FLOAT64),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="key",
    time_field="at",
    partitions=1,
)


@dataclass(frozen=True)
class About:
    """What the plan does not say of an aggregate: its value of nothing, and its error over the buckets covered."""

    nothing: str
    error: str
    note: str = ""


ABOUT = {
    "count": About("0", _EXACT),
    "sum": About(_NOTHING, f"integers: none, null beyond int64; {_ROUNDING}"),
    "mean": About(_NOTHING, _ROUNDING, "null where the sum is"),
    "min": About(_NOTHING, _EXACT),
    "max": About(_NOTHING, _EXACT),
    "last": About(_NOTHING, _EXACT, "the newest event's value; ties by (event time, partition, offset)"),
    "first": About(_NOTHING, _EXACT, "the oldest event's value; ties as for last"),
    "last_k": About(_NOTHING, _EXACT, "features name.0, the newest, to name.<k-1>"),
    "rate": About("0", _EXACT, "events per second of the window"),
    "variance": About(_NOTHING, _MERGED, "of the sample, over n - 1; null below two values"),
    "std": About(_NOTHING, _MERGED, "the root of the variance"),
    "skew": About(_NOTHING, _MERGED, "of the population, g1; null where all are equal; inexact below 1e-100"),
    "time_since_last": About(_NOTHING, _EXACT, "seconds before as_of"),
    "histogram": About("0", _EXACT, "counts as features name.0 to name.<edges>"),
    "decayed_sum": About(_NOTHING, _WEIGHTED, _HALF_LIVES),
    "ewma": About(_NOTHING, _WEIGHTED, f"mean weighted by 2^(-age / half-life); {_HALF_LIVES}"),
    "approx_distinct": About("0", "standard error 2.3 %", "HyperLogLog, 2^11 registers"),
    "quantile": About(_NOTHING, "1 % of the value", "DDSketch; beyond a factor of 20,000 the lowest merge"),
    "top_k": About(_NOTHING, "a count is too low by at most n / (8 k + 1), n / 33 where k is below 4", "Misra-Gries"),
}


def compiled(
    name: str, window_ms: int = HOUR_MS, accuracy: "definition.Accuracy.ValueType" = definition.ACCURACY_HOP
) -> ViewPlan | None:
    """Return the plan of a view with one such aggregate of a float; None where the engine does not compute it."""
    aggregation = definition.Aggregation(
        name=name,
        function=definition.AggregationFunction.Value(_PREFIX + name.upper()),
        expression=_EXPRESSIONS.get(name, "x"),
        window_ms=window_ms,
        type=definition.FIELD_TYPE_FLOAT64,
        **_PARAMETERS,
    )
    view = definition.View(
        name="v", stream="s", entity=["key"], accuracy=accuracy, features=[aggregation], budget_bytes=2**40
    )
    try:
        return compile_view(view, STREAM)
    except PlanError:
        return None


def aggregates() -> list[str]:
    """Return the names of all aggregates that may be declared and are computed, in the contract's order."""
    names = [name.removeprefix(_PREFIX).lower() for name in definition.AggregationFunction.keys()]  # noqa: SIM118
    return [name for name in names[1:] if _declarable(name) and compiled(name) is not None]


def _declarable(name: str) -> bool:
    function = getattr(tidemill, name, None)
    return function is not None and inspect.signature(function).return_annotation is not Unsupported


def declaration(name: str) -> str:
    """Return how an aggregate is declared, from the signature of its function."""
    function = getattr(tidemill, name)
    parameters = inspect.signature(function).parameters.values()
    return f"`tm.{name}({', '.join(_parameter(one) for one in parameters)})`"


def _parameter(one: inspect.Parameter) -> str:
    return one.name if one.default is inspect.Parameter.empty else f"{one.name}={one.default!r}"


def aggregates_table() -> str:
    """Return the table. Raises `SystemExit` where an aggregate is computed and not described."""
    offered = aggregates()
    if unknown := sorted(set(offered) - set(ABOUT)):
        raise SystemExit(f"docs/generate_features.py does not describe {', '.join(unknown)}: add it to ABOUT")
    lines = [
        "| declared | keeps in a slot | bytes of it | of nothing | error |",
        "|---|---|---|---|---|",
    ]
    for name in offered:
        plan = compiled(name)
        assert plan is not None
        ring = plan.rings[0]
        kept = ", ".join(partial.kind.name.lower() for partial in ring.partials) or "the slot's newest event time"
        size = str(sum(partial.words for partial in ring.partials) * WORD_BYTES)
        if ring.variable_bytes:
            size += f", and up to {ring.variable_bytes // ring.slots:,}"
        about = ABOUT[name]
        error = f"{about.error}; {about.note}" if about.note else about.error
        lines.append(f"| {declaration(name)} | {kept} | {size} | {about.nothing} | {error} |")
    lines += ["", f"The bytes of last_k and top_k are for k = {_PARAMETERS['k']}, those of a histogram for two edges."]
    return "\n".join(lines)


def hops_table() -> str:
    """Return the hop and the memory of some windows."""
    windows = (("10 s", 10), ("1 min", 60), ("5 min", 300), ("1 h", 3600), ("2 h", 7200), ("12 h", 43_200))
    windows += (("1 d", 86_400), ("7 d", 604_800), ("30 d", 2_592_000), ("365 d", 31_536_000))
    lines = ["| window | hop | slots | bytes of a ring with one mean | exact, at most |", "|---|---|---|---|---|"]
    for text, seconds in windows:
        plan, exact = (compiled("mean", seconds * 1000, accuracy) for accuracy in _ACCURACIES)
        assert plan is not None
        assert exact is not None
        ring = plan.rings[0]
        memory = f"{plan.bytes_per_key:,} | {exact.max_bytes_per_key:,}"
        lines.append(f"| {text} | {_span(ring.hop_us // 1_000_000)} | {ring.slots} | {memory} |")
    hops = ", ".join(_span(hop // 1000) for hop in HOPS_MS)
    shortest, longest = _span(HOPS_MS[0] // 1000), _span(HOPS_MS[-1] // 1000 * (MAX_SLOTS - slots_of(0, 1)))
    divided = _span(HOPS_MS[0] // 1000 * HOPS_PER_WINDOW)
    rule = (
        f"The hop is the largest of {hops} that divides the window in at least {HOPS_PER_WINDOW}; of a window below "
        f"{divided} it is {shortest}. A ring has ⌈window / hop⌉ + {slots_of(0, 1)} slots, at most {MAX_SLOTS}: so a "
        f"window is {shortest} to {longest} long."
    )
    return f"{rule}\n\n" + "\n".join(lines)


def _span(seconds: int) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def page() -> str:
    """Return docs/features.md with its tables as they must be."""
    text = PAGE.read_text()
    for mark, table in (("hops", hops_table()), ("aggregates", aggregates_table())):
        before, _, rest = text.partition(f"<!-- {mark} -->\n")
        _, _, after = rest.partition(f"<!-- /{mark} -->")
        text = f"{before}<!-- {mark} -->\n\n{table}\n\n<!-- /{mark} -->{after}"
    return text
