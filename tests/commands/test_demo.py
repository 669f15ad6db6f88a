"""What `tidemill demo` refuses before it starts anything."""

import json
from pathlib import Path

import pytest
from tidemill.cli.main import app
from typer.testing import CliRunner

OTHER = """
from datetime import datetime
import tidemill as tm

class Rode(tm.Event, stream="rides", key="ride", time="at"):
    ride: str
    at: datetime
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read: No such file or directory\nrun the demo in a checkout of Tidemill"),
        (OTHER, "one pipeline over the streams flight-scheduled, "),
    ],
)
def test_a_definition_of_other_streams_is_no_demo(text: str | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "definition.py"
    if text is not None:
        file.write_text(text)
    command = ["demo", "--definition", str(file), "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1, result.output
    assert says in json.loads(result.stdout)["error"]
    assert not (tmp_path / "out").exists()
