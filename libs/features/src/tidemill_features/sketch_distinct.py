"""How many different values: HyperLogLog of Apache DataSketches, 2^11 registers, standard error 2.3 %.

Two properties of that library would make the answer depend on more than the set of values. The estimator of what was
never merged (HIP) follows the order of arrival, and a union's own registers, which it makes of many small sketches, are
no different; so a union with registers takes them in once more, which leaves them alone and switches to the estimator
that looks only at them (without registers it is an exact set of hashes). And empty strings are ignored; so strings are
hashed here, to integers.

P. Flajolet, É. Fusy, O. Gandouet, F. Meunier, "HyperLogLog: the analysis of a near-optimal cardinality estimation
algorithm", AofA 2007.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from datasketches import hll_sketch, hll_union, tgt_hll_type

LG_REGISTERS = 11
# A merged sketch of at least as many bytes has registers, of a byte each; a set of hashes stays below.
_REGISTER_BYTES = 1 << LG_REGISTERS
# Registers of four bits, a header, and the few registers that need more.
MAX_BYTES = 1_152


class Distinct:
    """The values of one slot."""

    def __init__(self, held: hll_sketch | None = None) -> None:
        self._held = held if held is not None else hll_sketch(LG_REGISTERS, tgt_hll_type.HLL_4)

    def add(self, values: Sequence[Any]) -> None:
        """Take in values."""
        update = self._held.update
        for value in values:
            update(_number(value) if isinstance(value, str) else value)

    def pack(self) -> bytes:
        """Return the stored bytes."""
        return bytes(self._held.serialize_compact())

    @classmethod
    def unpack(cls, raw: bytes) -> "Distinct":
        """Return a stored sketch. Raises `ValueError`."""
        try:
            return cls(hll_sketch.deserialize(raw))
        # The library's own errors come through as RuntimeError and IndexError.
        except (RuntimeError, IndexError, TypeError) as error:
            raise ValueError(f"no HyperLogLog sketch: {error}") from error

    def into(self, union: hll_union) -> None:
        """Add the values to a union."""
        union.update(self._held)


def estimate(sketches: Iterable[Distinct]) -> int:
    """Return how many different values the sketches hold together."""
    union = hll_union(LG_REGISTERS)
    for sketch in sketches:
        sketch.into(union)
    merged = union.get_result(tgt_hll_type.HLL_8)
    if merged.get_compact_serialization_bytes() >= _REGISTER_BYTES:
        union.update(merged)
    return int(union.get_estimate() + 0.5)


def _number(text: str) -> int:
    raw = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(raw, "little", signed=True)
