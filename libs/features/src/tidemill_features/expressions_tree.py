"""The typed tree of an expression, and the one text that stands for all ways of writing it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import format_us

# The wrapper class of the generated module is not a type at run time.
Type: TypeAlias = "definition.FieldType.ValueType"
Scalar = bool | int | float | str | None

BOOL = definition.FIELD_TYPE_BOOL
INT64 = definition.FIELD_TYPE_INT64
FLOAT64 = definition.FIELD_TYPE_FLOAT64
STRING = definition.FIELD_TYPE_STRING
TIMESTAMP = definition.FIELD_TYPE_TIMESTAMP
# The type of a bare NULL before its surroundings give it one.
UNTYPED = definition.FIELD_TYPE_UNSPECIFIED

TYPE_NAMES: dict[int, str] = {
    BOOL: "bool",
    INT64: "int64",
    FLOAT64: "float64",
    STRING: "string",
    TIMESTAMP: "timestamp",
    UNTYPED: "NULL",
}

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class FieldRef:
    """A field of the event; where `source` is not empty, a feature of the view that is looked up under that name."""

    name: str
    type: Type
    nullable: bool
    source: str = ""

    @property
    def key(self) -> str:
        """The name of its value in a row: "field", or "source.feature"."""
        return f"{self.source}.{self.name}" if self.source else self.name


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant; `value` is None for NULL, microseconds for a timestamp."""

    value: Scalar
    type: Type

    @property
    def nullable(self) -> bool:
        return self.value is None


@dataclass(frozen=True, slots=True)
class Call:
    """An operation on arguments; `case` takes condition, value, condition, value, …, default."""

    op: str
    args: tuple["Node", ...]
    type: Type
    nullable: bool


Node = FieldRef | Literal | Call


def walk(node: Node) -> Iterator[Node]:
    """Yield the node and everything below it, parents first."""
    yield node
    if isinstance(node, Call):
        for argument in node.args:
            yield from walk(argument)


def depth_of(node: Node) -> int:
    """Return the number of levels of the tree; brackets and implied conversions count for nothing."""
    if not isinstance(node, Call):
        return 1
    below = max(map(depth_of, node.args), default=0)
    return below if node.op == "widen" else below + 1


_INFIX = {
    "or": ("OR", 1),
    "and": ("AND", 2),
    "eq": ("=", 4),
    "ne": ("<>", 4),
    "lt": ("<", 4),
    "le": ("<=", 4),
    "gt": (">", 4),
    "ge": (">=", 4),
    "add": ("+", 5),
    "sub": ("-", 5),
    "mul": ("*", 6),
    "div": ("/", 6),
    "intdiv": ("DIV", 6),
    "mod": ("%", 6),
}
_NOT, _COMPARISON, _UNARY, _ATOM = 3, 4, 7, 9
_CASTS = {"cast_float": "DOUBLE", "cast_int": "BIGINT", "cast_string": "VARCHAR"}
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Words that the grammar takes for itself, so that a field of that name is quoted.
_RESERVED = frozenset(
    """
    all alter and any as between by call case cast connect_by_root create cross current_catalog current_date
    current_time current_timestamp current_user date distinct div drop else end except execute explain false
    fetch for from glob grant having if ilike inner insert intersect interval into is join lateral like
    limit localtime localtimestamp not notnull null offset on optimize or outer partitioned_by prepare
    qualify regexp rename returning revoke rlike rollback select session_user show straight_join tablesample
    then timestamp true uncache union using vacuum values when where with xor
    """.split()  # noqa: SIM905 - as a list it would fill a page
)


def render(node: Node) -> str:
    """Return the canonical text of a tree: parsing it again gives the same tree."""
    return _render(node)[0]


def _render(node: Node) -> tuple[str, int]:
    """Return the text and how tightly its outermost operator binds."""
    if isinstance(node, FieldRef):
        parts = (node.source, node.name) if node.source else (node.name,)
        return ".".join(map(_identifier, parts)), _ATOM
    if isinstance(node, Literal):
        text = _literal(node)
        return text, _UNARY if text.startswith("-") else _ATOM
    if node.op == "widen":
        return _render(node.args[0])
    if node.op in _INFIX:
        return _infix(node)
    if node.op == "not":
        return f"NOT {_wrapped(node.args[0], _NOT + 1)}", _NOT
    if node.op == "is_null":
        return f"{_wrapped(node.args[0], _COMPARISON + 1)} IS NULL", _COMPARISON
    if node.op == "neg":
        return f"-{_wrapped(node.args[0], _ATOM)}", _UNARY
    if node.op == "case":
        return _case(node), _ATOM
    arguments = ", ".join(render(argument) for argument in node.args)
    if node.op in _CASTS:
        return f"CAST({arguments} AS {_CASTS[node.op]})", _ATOM
    return f"{node.op.upper()}({arguments})", _ATOM


def _infix(node: Call) -> tuple[str, int]:
    symbol, binds = _INFIX[node.op]
    # Comparisons do not chain; everything else associates to the left.
    first = binds + 1 if binds == _COMPARISON else binds
    parts = [_wrapped(node.args[0], first), *(_wrapped(argument, binds + 1) for argument in node.args[1:])]
    return f" {symbol} ".join(parts), binds


def _wrapped(node: Node, at_least: int) -> str:
    text, binds = _render(node)
    return text if binds >= at_least else f"({text})"


def _case(node: Call) -> str:
    pairs = zip(node.args[:-1:2], node.args[1:-1:2], strict=True)
    branches = " ".join(f"WHEN {render(condition)} THEN {render(value)}" for condition, value in pairs)
    default = node.args[-1]
    tail = "" if isinstance(default, Literal) and default.value is None else f" ELSE {render(default)}"
    return f"CASE {branches}{tail} END"


def _identifier(name: str) -> str:
    plain = _PLAIN_NAME.fullmatch(name) and name.lower() not in _RESERVED
    return name if plain else '"' + name.replace('"', '""') + '"'


def _literal(node: Literal) -> str:
    value = node.value
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if node.type == TIMESTAMP:
        return f"TIMESTAMP '{format_us(int(value))}'"
    return repr(value)
