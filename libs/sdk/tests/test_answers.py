"""What a command prints, and in whose name it changes something."""

import json
import math
import os
import subprocess
import sys

import pytest
from tidemill.cli.answers import Answer

NOBODYS_UID = 54_321
WHO = f"import os, pwd; from tidemill.clients.calls import actor; os.setuid({NOBODYS_UID}); print(actor())"


def test_json_names_numbers_that_are_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(as_json=True)
    answer.json({"values": [{"value": math.inf}, {"value": -math.inf}, {"value": math.nan}, {"value": 0.5}]})

    def refused(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found = json.loads(capsys.readouterr().out, parse_constant=refused)
    assert [one["value"] for one in found["values"]] == ["Infinity", "-Infinity", "NaN", 0.5]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user that nobody has entered")
def test_a_user_without_an_entry_is_named_by_number() -> None:
    names = ("TIDEMILL_ACTOR", "LOGNAME", "USER", "LNAME", "USERNAME")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", WHO], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"uid {NOBODYS_UID}\n", "")
