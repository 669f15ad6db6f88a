"""Will this flight land more than 15 minutes late? Asked two hours before its scheduled hour.

The events are those of `tidemill demo`: every flight that left New York in 2013, and the weather there.
"""

from datetime import datetime

import tidemill as tm


class Flight(tm.Event):
    """What every event of a flight says."""

    flight_id: str
    origin: str
    dest: str
    carrier: str
    tailnum: str | None


class Scheduled(Flight, stream="flight-scheduled", key="flight_id", time="asked_at", partitions=1):
    departs_at: datetime
    distance_miles: float
    asked_at: datetime


# Two partitions, so that two workers may share the fold: an airport's departures lie in both, and a read merges them.
class Departed(Flight, stream="flight-departed", key="flight_id", time="departed_at", partitions=2):
    dep_delay_minutes: float
    departed_at: datetime


class Arrived(Flight, stream="flight-arrived", key="flight_id", time="landed_at", lateness="6h", partitions=1):
    arr_delay_minutes: float
    landed_at: datetime


class Weather(tm.Event, stream="weather-observed", key="airport", time="observed_at", partitions=1):
    airport: str
    temperature_f: float | None
    humidity_pct: float | None
    wind_speed_mph: float | None
    precipitation_in: float | None
    pressure_mb: float | None
    visibility_miles: float | None
    observed_at: datetime


# How things go right now, where the flight starts.
origin = tm.View(
    "origin",
    Departed,
    by="origin",
    features={
        "departures_2h": tm.count("2h"),
        "mean_delay_2h": tm.mean("dep_delay_minutes", "2h"),
        "worst_delay_2h": tm.max("dep_delay_minutes", "2h"),
        "late_share_6h": tm.mean("dep_delay_minutes > 15", "6h"),
    },
)

# How this airline does at this airport, today and lately.
carrier = tm.View(
    "carrier",
    Departed,
    by=("carrier", "origin"),
    features={
        "mean_delay_6h": tm.mean("dep_delay_minutes", "6h"),
        "late_share_7d": tm.mean("dep_delay_minutes > 15", "7d"),
    },
)

# How flights land at the destination, and on the very route.
dest = tm.View(
    "dest",
    Arrived,
    by="dest",
    features={
        "arrivals_6h": tm.count("6h"),
        "mean_delay_6h": tm.mean("arr_delay_minutes", "6h"),
        "late_share_24h": tm.mean("arr_delay_minutes > 15", "24h"),
    },
)

route = tm.View(
    "route",
    Arrived,
    by=("origin", "dest"),
    features={
        "mean_delay_24h": tm.mean("arr_delay_minutes", "24h"),
        "late_share_7d": tm.mean("arr_delay_minutes > 15", "7d"),
    },
)

# The aircraft itself: a late one seldom leaves in time.
plane = tm.View(
    "plane",
    Arrived,
    by="tailnum",
    features={"last_delay": tm.last("arr_delay_minutes")},
    max_age="18h",
)

weather = tm.View(
    "weather",
    Weather,
    by="airport",
    features={
        "wind_speed_mph": tm.last("wind_speed_mph", "6h"),
        "humidity_pct": tm.last("humidity_pct", "6h"),
        "pressure_mb": tm.last("pressure_mb", "6h"),
        "visibility_miles": tm.min("visibility_miles", "2h"),
        "rain_6h_in": tm.sum("precipitation_in", "6h"),
    },
)

# No date and no month among the features: a model that knows the calendar of one winter knows nothing of July.
flight_delays = tm.Pipeline(
    "flight-delays",
    request=Scheduled,
    features={
        "origin": origin.on("origin"),
        "airline": carrier.on("carrier", "origin"),
        "arrivals": dest.on("dest"),
        "route": route.on("origin", "dest"),
        "plane": plane.on("tailnum"),
        "weather": weather.on("origin"),
        "airport": "origin",
        "carrier": "carrier",
        "dest": "dest",
        "distance_miles": "distance_miles",
        "hour": "hour(departs_at)",
        "dow": "dow(departs_at)",
    },
    label=tm.Label(Arrived, "arr_delay_minutes > 15", by="flight_id", wait="36h"),
    learner=tm.XGBoost(n_estimators=200, max_depth=tm.Int(3, 7), learning_rate=tm.Float(0.03, 0.12, log=True)),
    train=tm.Train(window="60d", min_rows=5_000, trials=1),
    gates=[tm.Better("log_loss", than="champion"), tm.AtLeast("roc_auc", 0.60)],
    rollout=[tm.Shadow("12h"), tm.Canary(0.10, "12h"), tm.Canary(0.50, "12h")],
    monitors=[tm.Performance("log_loss", limit=0.05), tm.Covariates(), tm.Predictions()],
    retrain=tm.Retrain(on=[tm.Drift(), tm.Every("28d")], cooldown="3d", budget="6 per 90d", false_alarms="1 per 90d"),
)
