"""The whole loop on real servers: it closes, it repeats itself, and nothing that is broken on purpose changes it."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tidemill.demo.flights import DAY_US, HOUR_US, Year, data_folder
from tidemill.demo.report import comparable
from tidemill.stack import Stack
from tidemill.stack.spec import SERVICES

pytestmark = [pytest.mark.e2e, pytest.mark.servers, pytest.mark.timeout(1_200)]

SERVERS = ("kafka", "redis", "postgres")
OUTAGE_S = 4.0


def first_us() -> int:
    return Year(data_folder(), 1).first_us


def killer(start_us: int) -> tuple[Callable[[Stack, int], None], list[str]]:
    """Return a disturbance that kills each service once, a day and some hours apart, and the list of its victims."""
    hours = [(9 + number) * 24 + 5 * number + 14 for number in range(len(SERVICES))]
    moments = {start_us + hour * HOUR_US: name for hour, name in zip(hours, SERVICES, strict=True)}
    killed: list[str] = []

    def disturb(stack: Stack, time_us: int) -> None:
        if time_us in moments:
            stack.kill(moments[time_us])
            killed.append(moments[time_us])

    return disturb, killed


def breaker(start_us: int) -> tuple[Callable[[Stack, int], None], list[str]]:
    """Return a disturbance that takes each server away for a while, and the list of what it took."""
    moments = {start_us + (10 + 2 * number) * DAY_US + 15 * HOUR_US: name for number, name in enumerate(SERVERS)}
    taken: list[str] = []

    def disturb(stack: Stack, time_us: int) -> None:
        if time_us in moments:
            name = moments[time_us]
            stack.stop_process(name)
            threading.Timer(OUTAGE_S, stack.start_process, (name,)).start()
            taken.append(name)

    return disturb, taken


def test_every_flight_after_the_first_model_gets_one_prediction_and_every_label_is_joined(undisturbed_run: Any) -> None:
    report = undisturbed_run.report
    assert report["failed_predictions"] == 0
    assert report["refused"] == {}
    assert report["predictions"] == report["predictions_asked"] == report["predictions_logged"] > 5_000
    labels = report["labels"]
    assert labels["pending"] == 0
    assert labels["joined"] + labels["never"] == report["predictions"]
    assert sum(week["labels"] for week in report["weeks"]) == labels["joined"]


def test_the_schedule_retrains_once_per_slot_and_the_registry_promotes(undisturbed_run: Any) -> None:
    report = undisturbed_run.report
    assert report["retrainings"].get("operator") == 1
    assert report["retrainings"].get("schedule", 0) >= 1
    assert report["promotions"][0]["version"] == 1


def test_what_was_served_is_what_the_offline_log_gives(undisturbed_run: Any) -> None:
    logs = [path.read_text() for path in (undisturbed_run.out / "stack/logs").glob("feature*")]
    said = [json.loads(line)["summary"] for log in logs for line in log.splitlines() if "skew_measured" in line]
    assert said
    assert [summary for summary in said if " all " not in summary] == []


def test_a_random_delay_in_every_hop_and_kill_9_of_every_service_change_nothing(
    undisturbed_run: Any, live: Any
) -> None:
    disturb, killed = killer(first_us())
    shaken = live("shaken", each_hour=disturb, hop_delay_ms=50)
    assert killed == list(SERVICES)
    assert comparable(shaken.report) == comparable(undisturbed_run.report)
    assert shaken.sample == undisturbed_run.sample


def test_an_outage_of_every_server_heals_without_a_human_and_changes_nothing(undisturbed_run: Any, live: Any) -> None:
    disturb, taken = breaker(first_us())
    healed = live("outage", each_hour=disturb)
    assert taken == list(SERVERS)
    assert comparable(healed.report) == comparable(undisturbed_run.report)
    assert healed.sample == undisturbed_run.sample


def test_sampled_features_equal_those_recomputed_from_the_csv_alone(undisturbed_run: Any) -> None:
    script = Path(__file__).with_name("recompute.py")
    found = subprocess.run(
        [sys.executable, script, undisturbed_run.out / "sample.json"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout[-4_000:] + found.stderr[-4_000:]
    assert "1000 predictions" in found.stdout
