"""What the views of a definition take in memory, per entity."""

from dataclasses import dataclass

from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.plan import DEFAULT_BUDGET_BYTES, RingPlan, compile_view


@dataclass(frozen=True, slots=True)
class ViewMemory:
    """Bytes of one entity with events in one partition.

    `most_bytes`: with all sketches and raw events full, strings at 32 bytes.
    """

    view: str
    rings: str
    bytes_per_key: int
    most_bytes: int
    budget_bytes: int


def memory_of(compiled: definition.Definition) -> list[ViewMemory]:
    """Return the memory of every view of a compiled definition, by name."""
    streams = {stream.name: stream for stream in compiled.streams}
    found = []
    for view in compiled.views:
        plan = compile_view(view, streams[view.stream])
        rings = " + ".join(_ring(ring) for ring in plan.rings)
        budget = view.budget_bytes or DEFAULT_BUDGET_BYTES
        found.append(ViewMemory(view.name, rings, plan.bytes_per_key, plan.max_bytes_per_key, budget))
    return found


def _ring(ring: RingPlan) -> str:
    seconds = ring.hop_us // 1_000_000
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        if seconds % size == 0:
            return f"{ring.slots} × {seconds // size}{unit}"
    raise ValueError(f"a hop of {ring.hop_us} µs")
