"""What is wrong with an expression is said at check time, with the place in its text."""

import pytest
from sqlglot import parser, tokens
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.expressions import ExpressionError, compile_expression, schema_of
from tidemill_features.expressions_checker import MAX_DEPTH, MAX_NODES

SCHEMA = schema_of(
    [
        definition.Field(name="dep_delay_minutes", type=definition.FIELD_TYPE_FLOAT64, nullable=True),
        definition.Field(name="carrier", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="seats", type=definition.FIELD_TYPE_INT64),
        definition.Field(name="departs_at", type=definition.FIELD_TYPE_TIMESTAMP),
        definition.Field(name="cancelled", type=definition.FIELD_TYPE_BOOL),
    ]
)


@pytest.mark.parametrize(
    ("text", "message", "offset"),
    [
        ("1 + dep_dealy_minutes", "no field 'dep_dealy_minutes'; did you mean 'dep_delay_minutes'?", 4),
        ("Carrier = 'UA'", "no field 'Carrier'; did you mean 'carrier'?", 0),
        ("zzz > 1", "no field 'zzz'; it has cancelled, carrier, dep_delay_minutes, departs_at, seats", 0),
        ('carrier = "UA"', "no field 'UA'; a string takes single quotes", 10),
        ("seats > 'x'", "cannot compare int64 and string together", 0),
        ("seats + carrier", "a number is wanted, not string", 8),
        ("seats + cancelled", "a number is wanted, not bool; write CAST(… AS BIGINT)", 8),
        ("cancelled AND seats", "a condition is wanted, not int64", 14),
        ("NOT carrier", "a condition is wanted, not string", 4),
        ("hour(seats)", "HOUR takes a timestamp, not int64", 5),
        ("departs_at - departs_at", "a number is wanted, not timestamp", 0),
        ("cancelled > TRUE", "booleans have no order; compare them with = or <>", 0),
        ("seats = NULL", "a comparison with NULL is always NULL; write IS NULL", 0),
        ("carrier || seats", "a string is wanted, not int64; write CAST(… AS VARCHAR)", 11),
        ("seats > rand()", "RAND is not deterministic: a replay would give other values", 8),
        ("departs_at < now()", "NOW is not deterministic: a replay would give other values", 13),
        ("departs_at < current_timestamp", "CURRENT_TIMESTAMP is not deterministic", None),
        ("SUM(seats)", "SUM is an aggregate; aggregate with tm.count, tm.sum, tm.mean, …", 0),
        ("seats IN (SELECT 1)", "IN takes a list of values, as in x IN ('a', 'b')", 0),
        ("huor(departs_at)", "no function HUOR; did you mean HOUR?", 0),
        ("SQRT(seats)", "no function SQRT", 0),
        ("EXP(seats)", "no function EXP", 0),
        ("t.seats", "write the field's bare name, not 't.seats'", 0),
        ("seats IS TRUE", "IS tests for NULL only; write x = TRUE", 0),
        ("ROUND(seats, 2)", "ROUND takes one argument", 0),
        ("dep_delay_minutes DIV 2", "DIV divides integers, not float64; use /", 0),
        ("CAST(carrier AS DOUBLE)", "cannot cast string to DOUBLE", 5),
        ("CAST(seats AS DATE)", "cannot cast to DATE; there are DOUBLE, BIGINT and VARCHAR", 5),
        ("TIMESTAMP '2013-06-04'", "not an instant", 10),
        ("seats > 9223372036854775808", "9223372036854775808 is beyond int64", 8),
        ("seats > 1e400", "1e400 is beyond float64", 8),
        ("NULL", "the expression is always NULL", None),
        ("COALESCE(NULL, NULL)", "the expression is always NULL", None),
        ("", "exactly one expression is wanted", None),
        ("seats; seats", "exactly one expression is wanted", None),
        ("seats >", "not an SQL expression: something is missing after '>'", 6),
        ("(seats", "not an SQL expression: ')' is missing after 'seats'", 1),
        ("seats seats", "not an SQL expression: 'seats' is not expected here", 6),
        ("SELECT seats", "not an SQL expression: 'SELECT' is not expected here", 0),
        ("carrier = 'UA", "not an SQL expression: a quote or bracket is not closed", None),
        ("carrier LIKE 'U%'", "Like is not part of the expression language", 0),
        ("seats ^ 2", "BitwiseXor is not part of the expression language", 0),
    ],
)
def test_a_bad_expression_is_refused_with_the_place_and_the_fix(text: str, message: str, offset: int | None) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text, SCHEMA)
    assert caught.value.message.startswith(message)
    assert caught.value.offset == offset


VIEWS = {
    "plane": schema_of([definition.Field(name="last_delay", type=definition.FIELD_TYPE_FLOAT64, nullable=True)]),
    "dest": schema_of([definition.Field(name="delays.0", type=definition.FIELD_TYPE_FLOAT64, nullable=True)]),
}


@pytest.mark.parametrize(
    ("text", "message", "offset"),
    [
        ("1 + plain.last_delay", "no view is looked up as 'plain'; did you mean 'plane'?", 4),
        ("weather.wind > 1", "no view is looked up as 'weather'; looked up are dest, plane", 0),
        ("plane.last_dealy", "no feature 'last_dealy' in 'plane'; did you mean 'last_delay'?", 0),
        ("plane.wind", "no feature 'wind' in 'plane'; it has last_delay", 0),
        ("last_delay > 15", "no field 'last_delay'; of what is looked up it is plane.last_delay", 0),
        ('"delays.0"', """no field 'delays.0'; of what is looked up it is dest."delays.0\"""", 0),
        ("seats || plane.last_delay", "a string is wanted, not int64", 0),
        ("a.plane.last_delay", "write the field's bare name, not 'a.plane.last_delay'", 0),
        ("1 + dest.delays.0", 'a name with a dot is quoted: write dest."delays.0"', 4),
    ],
)
def test_what_is_read_of_views_is_refused_with_the_place_and_the_fix(text: str, message: str, offset: int) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text, SCHEMA, views=VIEWS)
    assert caught.value.message.startswith(message)
    assert caught.value.offset == offset


def test_a_field_that_is_called_like_a_feature_of_a_view_is_not_taken_for_it() -> None:
    field = definition.Field(name="plane.last_delay", type=definition.FIELD_TYPE_STRING)
    schema = {**SCHEMA, field.name: field}
    with pytest.raises(ExpressionError, match="is the name of a field, too; look the view up under another name"):
        compile_expression("plane.last_delay", schema, views=VIEWS)
    of_field = compile_expression('"plane.last_delay"', schema, views=VIEWS)
    assert (of_field.columns, of_field.features, of_field.canonical) == ((field.name,), (), '"plane.last_delay"')


def test_a_feature_of_several_numbers_is_read_by_its_quoted_name() -> None:
    expression = compile_expression('dest."delays.0" - plane.last_delay', SCHEMA, views=VIEWS)
    assert expression.features == ("dest.delays.0", "plane.last_delay")
    assert expression.canonical == 'dest."delays.0" - plane.last_delay'
    assert expression.evaluate_row({"dest.delays.0": 5.0, "plane.last_delay": 2.0}) == 3.0


def test_the_caret_stands_under_the_fault_in_its_own_line() -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression("seats > 1\n  AND seets < 3", SCHEMA)
    assert caught.value.pointer() == "  AND seets < 3\n      ^"


@pytest.mark.parametrize(
    "texts",
    [
        ("dep_delay_minutes > 15", "dep_delay_minutes>15.0", '("dep_delay_minutes") > 15 -- late'),
        ("seats BETWEEN 1 AND 3", "seats >= 1 AND seats <= 3"),
        ("carrier IN ('AA', 'UA')", "(carrier = 'AA') OR carrier = 'UA'"),
        ("DAY_OF_WEEK(departs_at)", "dow(departs_at)"),
        ("carrier || 'x'", "concat(carrier, 'x')"),
        ("seats != 1", "seats <> 1"),
        ("NULLIF(seats, 0)", "CASE WHEN seats = 0 THEN NULL ELSE seats END"),
        ("(cancelled AND seats > 1) AND seats < 3", "cancelled AND (seats > 1 AND seats < 3)"),
    ],
)
def test_equal_expressions_have_one_canonical_text(texts: tuple[str, ...]) -> None:
    assert len({compile_expression(text, SCHEMA).canonical for text in texts}) == 1


@pytest.mark.parametrize(
    "text", ["1 - (2 - seats)", "1 - 2 - seats", "-(-5)", "- -seats", "(1 + seats) * 2", "NOT (NOT cancelled)"]
)
def test_brackets_that_matter_stay(text: str) -> None:
    expression = compile_expression(text, SCHEMA)
    assert compile_expression(expression.canonical, SCHEMA).evaluate_row({"seats": 4, "cancelled": True}) == (
        expression.evaluate_row({"seats": 4, "cancelled": True})
    )


def test_a_field_may_bear_any_name_that_sql_uses_itself() -> None:
    words = {*tokens.Tokenizer.KEYWORDS, *parser.Parser.FUNCTIONS, "div", "position", "substring", "extract"}
    names = [*sorted(word.lower() for word in words if word.isidentifier()), "Select", "END", "Case"]
    schema = schema_of(definition.Field(name=name, type=definition.FIELD_TYPE_INT64) for name in names)
    shapes = (
        "{}",
        "1 - {} + {}",
        "{} > 1 AND NOT {} IS NULL",
        "CASE WHEN {} > 1 THEN {} ELSE {} END",
        "-{} % 2 DIV {}",
        "ABS({})",
    )
    for name in names:
        for shape in shapes:
            quoted = '"' + name + '"'
            expression = compile_expression(shape.replace("{}", quoted), schema)
            again = compile_expression(expression.canonical, schema)
            assert again.columns == (name,), expression.canonical
            looked_up = {name: {name: schema[name]}}
            of_view = compile_expression(shape.replace("{}", f"{quoted}.{quoted}"), {}, views=looked_up)
            again = compile_expression(of_view.canonical, {}, views=looked_up)
            assert again.features == (f"{name}.{name}",), of_view.canonical


def test_brackets_and_shorthands_cannot_make_a_small_text_a_large_tree() -> None:
    text = "seats"
    for _ in range(12):
        text = f"CASE WHEN {text} BETWEEN 1 AND 2 THEN 1 ELSE 2 END"
    with pytest.raises(ExpressionError, match="too large"):
        compile_expression(text, SCHEMA)
    with pytest.raises(ExpressionError, match="too deeply"):
        compile_expression("(" * 2000 + "seats" + ")" * 2000, SCHEMA)
    with pytest.raises(ExpressionError, match="too large"):
        compile_expression(" + ".join(["seats"] * 500), SCHEMA)
    with pytest.raises(ExpressionError, match="at most 4096"):
        compile_expression("seats" + " " * 5000, SCHEMA)


def test_a_long_chain_of_conditions_is_fine() -> None:
    text = " OR ".join(f"seats = {n}" for n in range(150))
    assert compile_expression(text, SCHEMA).evaluate_row({"seats": 149}) is True


def test_the_compiled_expression_tells_its_type_nullability_and_columns() -> None:
    expression = compile_expression("dep_delay_minutes > seats", SCHEMA)
    assert (expression.type, expression.nullable) == (definition.FIELD_TYPE_BOOL, True)
    assert expression.columns == ("dep_delay_minutes", "seats")
    assert compile_expression("carrier", SCHEMA).nullable is False


@pytest.mark.parametrize(
    ("text", "nullable"),
    [
        ("seats", False),
        ("dep_delay_minutes", True),
        # What overflows, divides by zero or fits no int64 is null though no argument was.
        *[(f"seats {op} seats", True) for op in ("+", "-", "*", "/", "DIV", "%")],
        ("-seats", True),
        ("ABS(seats)", True),
        ("CAST(CAST(seats AS DOUBLE) AS BIGINT)", True),
        ("CAST(seats AS DOUBLE)", False),
        ("ROUND(seats)", False),
        ("LEAST(seats, 4)", False),
        ("LEAST(seats, dep_delay_minutes)", True),
        ("COALESCE(dep_delay_minutes, 0)", False),
        ("COALESCE(0, dep_delay_minutes)", False),
        ("COALESCE(dep_delay_minutes, dep_delay_minutes)", True),
        ("NULLIF(seats, 0)", True),
        ("CASE WHEN cancelled THEN 1 ELSE 2 END", False),
        ("CASE WHEN cancelled THEN 1 END", True),
        ("CASE WHEN cancelled THEN dep_delay_minutes ELSE 2 END", True),
        ("CASE WHEN dep_delay_minutes > 1 THEN 1 ELSE 2 END", False),
        ("dep_delay_minutes IS NULL", False),
        ("hour(departs_at)", False),
        ("carrier || 'x'", False),
    ],
)
def test_what_can_be_null_is_known(text: str, nullable: bool) -> None:
    assert compile_expression(text, SCHEMA).nullable is nullable


def wide(terms: int) -> str:
    return f"COALESCE({', '.join(['1'] * terms)})"


def chosen(branches: int) -> str:
    cases = " ".join(f"WHEN {branch} THEN 1" for branch in range(branches))
    return f"CASE {wide(99)} {cases} END"


@pytest.mark.parametrize(
    ("fits", "too_large"),
    [
        (wide(MAX_NODES - 1), wide(MAX_NODES)),
        # Each branch compares a copy of the 100 terms, and has two of its own.
        (chosen(4), chosen(5)),
        (f"NULLIF({wide(254)}, 1)", f"NULLIF({wide(255)}, 1)"),
    ],
)
def test_an_expression_may_be_as_large_as_is_said_and_no_larger(fits: str, too_large: str) -> None:
    compile_expression(fits, SCHEMA)
    with pytest.raises(ExpressionError, match=f"at most {MAX_NODES} terms, {MAX_DEPTH} levels deep"):
        compile_expression(too_large, SCHEMA)


def test_an_expression_may_be_as_deep_as_is_said_and_no_deeper() -> None:
    compile_expression(" - ".join(["seats"] * MAX_DEPTH), SCHEMA)
    with pytest.raises(ExpressionError, match="too large when written out"):
        compile_expression(" - ".join(["seats"] * (MAX_DEPTH + 1)), SCHEMA)


@pytest.mark.parametrize("text", ["LEAST(NULL, NULL)", "GREATEST(cancelled, cancelled)"])
def test_extremes_are_of_what_has_an_order(text: str) -> None:
    with pytest.raises(ExpressionError, match="orders numbers, strings or timestamps"):
        compile_expression(text, SCHEMA)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("CAST(seats AS BIGINT)", "seats"),
        ("CAST(carrier AS VARCHAR)", "carrier"),
        ("CAST(dep_delay_minutes AS DOUBLE)", "dep_delay_minutes"),
        ("(NOT cancelled) IS NULL", "(NOT cancelled) IS NULL"),
        ("(seats > 1) IS NULL", "(seats > 1) IS NULL"),
        ("NOT (NOT cancelled)", "NOT (NOT cancelled)"),
        ("(seats > 1) = cancelled", "(seats > 1) = cancelled"),
        ("seats - (-1)", "seats - -1"),
        ("-(-seats)", "-(-seats)"),
    ],
)
def test_casts_and_brackets_that_change_nothing_are_left_out(text: str, canonical: str) -> None:
    assert compile_expression(text, SCHEMA).canonical == canonical
