"""The demo's events are the table's rows, by plain Python, also on the days on which clocks are changed."""

import csv
import io
import zipfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from tidemill.demo.flights import ARRIVED, DEPARTED, SCHEDULED, WEATHER, Year, data_folder, load_flights
from tidemill_contracts.instants import parse_us

# Some airports of each zone; in Phoenix and Honolulu the clocks are left alone.
ZONES = {
    "ATL": "America/New_York",
    "MIA": "America/New_York",
    "ORD": "America/Chicago",
    "DEN": "America/Denver",
    "PHX": "America/Phoenix",
    "LAX": "America/Los_Angeles",
    "HNL": "Pacific/Honolulu",
    "SJU": "America/Puerto_Rico",
}
CHANGED = ("2013-03-09", "2013-03-10", "2013-03-11", "2013-11-02", "2013-11-03", "2013-11-04")
HOURS = timedelta(hours=1)


def rows() -> Iterator[dict[str, str]]:
    with zipfile.ZipFile(data_folder() / "flights.csv.zip") as archive, archive.open("flights.csv") as raw:
        lines = csv.reader(io.TextIOWrapper(raw, "utf-8", newline=""))
        names = next(lines)
        for line in lines:
            if line[-1].startswith(CHANGED):
                row = dict(zip(names, line, strict=True))
                if row["dest"] in ZONES:
                    yield row


def expected(row: dict[str, str]) -> dict[str, tuple[int, dict[str, object]]]:
    """Return (event time, what it says of its own) by stream."""
    hour = datetime.fromisoformat(row["time_hour"])
    leaves = (hour + timedelta(minutes=int(row["minute"]))).astimezone(ZoneInfo(ZONES[row["dest"]]))
    clock = int(row["sched_arr_time"])
    lands = leaves.replace(hour=clock // 100 % 24, minute=clock % 100)
    if lands <= leaves:
        lands += timedelta(days=1)
    found: dict[str, tuple[int, dict[str, object]]] = {
        SCHEDULED: (parse_us((hour - 2 * HOURS).isoformat()), {"distance_miles": float(row["distance"])})
    }
    for stream, planned, delay, name in (
        (DEPARTED, leaves, row["dep_delay"], "dep_delay_minutes"),
        (ARRIVED, lands, row["arr_delay"], "arr_delay_minutes"),
    ):
        if delay not in ("", "NA"):
            time_us = int(planned.timestamp() + 60 * int(delay)) * 1_000_000
            found[stream] = time_us, {name: float(delay)}
    return found


def test_every_row_is_told_when_it_happened_where_it_happened() -> None:
    flights = load_flights(data_folder(), 366)
    times = {stream: dict(zip(told.tolist(), us.tolist(), strict=True)) for stream, told, us in flights.told()}
    place_of = {flight.id: place for place, flight in enumerate(flights.rows)}
    compared = 0
    for row in rows():
        place = place_of[f"{row['carrier']}{row['flight']}-{row['origin']}-{row['time_hour'][:13]}"]
        wanted = expected(row)
        assert {stream for stream in times if place in times[stream]} == set(wanted)
        for stream, (time_us, own) in wanted.items():
            assert times[stream][place] == time_us, (row, stream)
            event = flights.rows[place].event(stream, time_us)
            assert event.fields.items() >= own.items()
            assert event.fields["tailnum"] == (None if row["tailnum"] in ("", "NA") else row["tailnum"])
            compared += 1
    assert compared > 3_000


def test_events_come_in_the_order_of_their_times_and_once() -> None:
    year = Year(data_folder(), 3)
    assert len(year) > 7_000
    halves = [year.until((year.first_us + year.last_us) // 2), year.until(year.last_us), year.until(year.last_us)]
    events = [event for half in halves for event in half]
    assert halves[0]
    assert not halves[2]
    assert len(events) == len(year) == len({(event.stream, event.id) for event in events})
    assert [event.time_us for event in events] == sorted(event.time_us for event in events)


def test_a_shuffled_year_has_the_same_flights_on_other_days_at_the_same_times_of_day() -> None:
    year, twin = (Year(data_folder(), 6, seed) for seed in (None, 3))
    as_it_was = {(one.stream, one.id): one for one in year.until(2**62) if one.stream != WEATHER}
    shuffled = {(one.stream, one.id): one for one in twin.until(2**62) if one.stream != WEATHER}
    assert shuffled.keys() == as_it_was.keys()
    day_us = 86_400_000_000
    moved = {(shuffled[key].time_us - as_it_was[key].time_us) for key in shuffled}
    assert len(moved) > 2
    assert all(by % day_us == 0 for by in moved)
