"""`tidemill dataset` on a stack that has trained: the rows of training in a file, with what they were made from."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tidemill_features.dataset_file import lineage_of

pytestmark = [pytest.mark.e2e, pytest.mark.servers, pytest.mark.timeout(600)]

PIPELINE = "flight-delays"


def tidemill(home: Path, *arguments: object, stdin: str = "") -> tuple[int, Any]:
    """Run a command and return its code and what it said."""
    command = [sys.executable, "-m", "tidemill.cli.main", *map(str, arguments), "--home", str(home), "--json"]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def dataset(home: Path, *arguments: object) -> tuple[int, Any]:
    """Return what the command says of the flights' set."""
    return tidemill(home, "dataset", PIPELINE, *arguments)


def test_a_dataset_holds_labelled_rows_says_what_it_was_made_from_and_is_the_same_again(
    trained: Any, tmp_path: Path
) -> None:
    home = trained.stack.layout.home
    window = ("--from", "2013-01-01T00:00:00Z", "--to", "2013-01-03T00:00:00Z")
    code, said = dataset(home, *window, "-o", tmp_path / "one.parquet")
    assert code == 0, said
    rows = pq.read_table(tmp_path / "one.parquet")
    assert rows.num_rows == said["rows"] > 100
    assert set(rows["_label"].to_pylist()) == {0.0, 1.0}
    assert {"origin.departures_2h", "plane.last_delay", "carrier"} <= set(rows.column_names)
    assert lineage_of(tmp_path / "one.parquet") == said["lineage"]
    assert said["lineage"]["definition_hash"].startswith("sha256:")
    assert "events_flight_arrived" in said["lineage"]["snapshots"]
    code, _ = dataset(home, *window, "-o", tmp_path / "two.arrow")
    assert code == 0
    assert lineage_of(tmp_path / "two.arrow")["definition_hash"] == said["lineage"]["definition_hash"]


def test_a_dataset_counts_what_was_sent_just_before(trained: Any, tmp_path: Path) -> None:
    home = trained.stack.layout.home
    window = ("--from", "2013-01-01T00:00:00Z", "--to", "2013-01-03T00:00:00Z")
    _, before = dataset(home, *window, "-o", tmp_path / "before.parquet")
    nowhere = {"airport": "XXX", "observed_at": "2013-01-02T12:00:00Z"}
    code, pushed = tidemill(home, "push", "weather-observed", "-", "--format", "ndjson", stdin=json.dumps(nowhere))
    assert (code, pushed["accepted"]) == (0, 1), pushed
    code, after = dataset(home, *window, "-o", tmp_path / "after.parquet")
    assert (code, after["behind"], after["rows"]) == (0, {}, before["rows"])
    changed = {
        name for name, held in after["lineage"]["snapshots"].items() if held != before["lineage"]["snapshots"][name]
    }
    assert changed == {"events_weather_observed"}


def test_a_dataset_that_cannot_be_written_is_refused_by_name(trained: Any, tmp_path: Path) -> None:
    home = trained.stack.layout.home
    code, said = dataset(home, "-o", tmp_path / "set.csv")
    assert (code, "a dataset ends in" in said["error"]) == (2, True)
    backwards = ("--from", "2013-01-03T00:00:00Z", "--to", "2013-01-01T00:00:00Z")
    code, said = dataset(home, *backwards, "-o", tmp_path / "set.parquet")
    assert (code, said["error"]) == (2, "--from lies at or after --to")
    assert not list(tmp_path.iterdir())
