"""docs/reasons.md says what every reason means, and nothing that is no reason."""

from pathlib import Path

import pytest
from tidemill_contracts.reasons import Reason
from tidemill_runtime.problems import status_of
from tidemill_runtime.rpc_errors import code_of

COLUMNS = 6


@pytest.fixture(scope="module")
def rows(root: Path) -> dict[str, list[str]]:
    """The cells of each row of the table, by reason."""
    lines = (root / "docs/reasons.md").read_text().splitlines()
    # `\|` is a bar within a cell.
    cells = [[cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row for row in cells if len(row) == COLUMNS and row[0].startswith("`")}


def test_every_reason_has_a_row_and_every_row_a_reason(rows: dict[str, list[str]]) -> None:
    assert rows.keys() == {reason.value for reason in Reason}, "a reason and its row in docs/reasons.md go together"


@pytest.mark.parametrize("reason", Reason)
def test_a_row_says_everything(rows: dict[str, list[str]], reason: Reason) -> None:
    _, code, status, *texts = rows[reason]
    assert code == code_of(reason).name
    assert status == str(status_of(reason))
    assert all(texts), f"say of {reason} what it means, where it appears and what to do"


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_given_by_something(root: Path, reason: Reason) -> None:
    name = f"Reason.{reason.name}"
    sources = [*root.glob("libs/*/src/**/*.py"), *root.glob("services/*/src/**/*.py")]
    given = [path for path in sources if path.name not in {"problems.py", "rpc_errors.py"} and name in path.read_text()]
    assert given or reason is Reason.HANDLER, f"nothing refuses for {reason}: remove it"
