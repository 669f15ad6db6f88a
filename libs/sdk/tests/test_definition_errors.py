"""Every fault of a definition file is named with file, line and fix."""

# ruff: noqa: E501 - one fault a line is what makes the table readable

from pathlib import Path

import pytest
from tidemill.definition import DefinitionError, compile_file

HEAD = """\
from datetime import datetime
import tidemill as tm
class Scheduled(tm.Event, stream="flight-scheduled", key="flight_id", time="asked_at"):
    flight_id: str
    origin: str
    tailnum: str | None
    seats: int
    distance: float
    asked_at: datetime
class Departed(tm.Event, stream="flight-departed", key="flight_id", time="departed_at"):
    flight_id: str
    origin: str
    carrier: str
    dep_delay_minutes: float
    departed_at: datetime
"""
VIEW = """\
origin = tm.View("origin", Departed, by="origin", features={
    "departures_2h": tm.count("2h"),
    "carrier": tm.last("carrier", "2h"),
})
"""
PIPELINE = """\
pipeline = tm.Pipeline(
    "delays",
    request=Scheduled,
    features={"origin": origin.on("origin"), "distance": "distance"},
    label=tm.Label(Departed, "dep_delay_minutes > 15", by="flight_id", wait="36h"),
    learner=tm.XGBoost(max_depth=tm.Int(3, 8)),
    train=tm.Train(window="60d"),
    gates=[tm.Better("log_loss", than="champion")],
    rollout=[tm.Shadow("12h"), tm.Canary(0.1, "12h")],
    monitors=[tm.Performance("log_loss", limit=0.05)],
    retrain=tm.Retrain(on=[tm.Drift(), tm.Every("28d")]),
)
"""
GOOD = HEAD + VIEW + PIPELINE


def problems_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> list[str]:
    monkeypatch.chdir(tmp_path)
    path = Path("flights.py")
    path.write_text(text)
    with pytest.raises(DefinitionError) as caught:
        compile_file(path)
    return [problem.sentence for problem in caught.value.problems]


def test_the_file_that_the_faults_are_put_into_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "flights.py"
    path.write_text(GOOD)
    compiled = compile_file(path)
    assert [stream.name for stream in compiled.streams] == ["flight-departed", "flight-scheduled"]
    assert [pipeline.name for pipeline in compiled.pipelines] == ["delays"]


# (what is replaced, by what, the sentence)
FAULTS = [
    # Events.
    ('stream="flight-scheduled", ', "", "flights.py:3: event Scheduled: it names no stream; write class X(tm.Event, stream="),
    ('key="flight_id", time="asked_at"', 'time="asked_at"', 'flights.py:3: event Scheduled: it names no key; add key="…", one of its fields'),
    ('time="asked_at"', 'time="askd_at"', "flights.py:3: event Scheduled: time: no field 'askd_at' in Scheduled; did you mean 'asked_at'?"),
    ('time="asked_at"', 'time="origin"', "flights.py:3: event Scheduled: time: field 'origin' must be datetime and never null"),
    ('key="flight_id", time="asked_at"', 'key="tailnum", time="asked_at"', "flights.py:3: event Scheduled: key: field 'tailnum' must be str and never null"),
    ('time="asked_at")', 'time="asked_at", latenes="2h")', "flights.py:3: event Scheduled: unknown keyword 'latenes'; did you mean 'lateness'?"),
    ('time="asked_at")', 'time="asked_at", lateness="2 hours")', "flights.py:3: event Scheduled: lateness: '2 hours' is not a duration; write \"30s\", \"5m\", \"2h\" or \"7d\""),
    ('time="asked_at")', 'time="asked_at", partitions=0)', "flights.py:3: event Scheduled: partitions: a whole number from 1 to 256 is needed, not 0"),
    ('time="asked_at")', 'time="asked_at", late="dropped")', "flights.py:3: event Scheduled: late: unknown 'dropped'; did you mean 'drop'?"),
    ('stream="flight-scheduled"', 'stream="Flight Scheduled"', "flights.py:3: event Scheduled: 'Flight Scheduled' is no name; use a-z, 0-9 and -, at most 100 characters"),
    ('stream="flight-scheduled"', 'stream="flight-departed"', "flights.py:10: event Departed: stream 'flight-departed' is declared by Scheduled already"),
    ("seats: int", "seats: list[int]", "flights.py:7: event Scheduled: field 'seats': type list[int] is not possible; use str, int, float, bool or datetime"),
    ("seats: int", "seats: int | str", "flights.py:7: event Scheduled: field 'seats': type int | str is not possible"),
    ("seats: int", "seats: Seats", "flights.py:7: NameError: name 'Seats' is not defined"),
    ("seats: int", "seats: int = 3", "flights.py:7: event Scheduled: field 'seats': a field has no default value"),
    ("seats: int", "_offset: int", "flights.py:7: event Scheduled: field '_offset': the offline log's own columns begin with _; begin it with a letter"),
    ("seats: int", "_seats: int | None", "flights.py:7: event Scheduled: field '_seats': the offline log's own columns begin with _; begin it with a letter"),
    # Views.
    ('tm.count("2h")', 'tm.counts("2h")', "flights.py:17: tidemill: unknown 'counts'; did you mean 'count'?"),
    ('tm.count("2h")', 'tm.mean("dep_dealy_minutes", "2h")', "flights.py:17: view 'origin': feature 'departures_2h': no field 'dep_dealy_minutes' in Departed; did you mean 'dep_delay_minutes'?"),
    ('tm.count("2h")', 'tm.mean("dep_delay_minutes >", "2h")', "flights.py:17: view 'origin': feature 'departures_2h': not an SQL expression: something is missing after '>'"),
    ('tm.count("2h")', 'tm.mean("carrier", "2h")', "flights.py:17: view 'origin': feature 'departures_2h': mean takes bool, int64, float64, not string"),
    ('tm.count("2h")', 'tm.sum("random()", "2h")', "flights.py:17: view 'origin': feature 'departures_2h': RAND is not deterministic: a replay would give other values"),
    ('tm.count("2h")', 'tm.count("2h", where="dep_delay_minutes")', "flights.py:17: view 'origin': feature 'departures_2h': where: a condition is wanted, not float64"),
    ('tm.count("2h")', 'tm.count("2 h")', "flights.py:17: view 'origin': feature 'departures_2h': '2 h' is not a duration"),
    ('tm.count("2h")', 'tm.count("0h")', "flights.py:17: view 'origin': feature 'departures_2h': a duration above zero is needed"),
    ('tm.count("2h")', 'tm.count("3650d")', "flights.py:16: view 'origin': feature 'departures_2h' needs 3652 slots for its window, and at most 400 fit: that is 398 days"),
    ('tm.count("2h")', 'tm.last("dep_delay_minutes")', "flights.py:17: view 'origin': feature 'departures_2h' is a last without a window; give it a window, or the view a max_age"),
    ('tm.count("2h")', 'tm.variance("carrier", "2h")', "flights.py:17: view 'origin': feature 'departures_2h': variance takes bool, int64, float64, not string"),
    ('tm.count("2h")', 'tm.last_k("carrier", 33, "2h")', "flights.py:17: view 'origin': feature 'departures_2h': k: a whole number from 1 to 32 is needed, not 33"),
    ('tm.count("2h")', 'tm.top_k("dep_delay_minutes", 3, "2h")', "flights.py:17: view 'origin': feature 'departures_2h': top_k takes bool, int64, string, timestamp, not float64"),
    ('tm.count("2h")', 'tm.quantile("dep_delay_minutes", 95, "2h")', "flights.py:17: view 'origin': feature 'departures_2h': q: a number from 0 to 1 is needed, not 95"),
    ('tm.count("2h")', 'tm.histogram("dep_delay_minutes", [15, 0], "2h")', "flights.py:17: view 'origin': feature 'departures_2h': edges are a list of 1 to 64 numbers that rise, not [15, 0]"),
    ('tm.count("2h")', 'tm.histogram("dep_delay_minutes", [0, float("inf")], "2h")', "flights.py:17: view 'origin': feature 'departures_2h': edges are a list of 1 to 64 numbers that rise, not [0, inf]"),
    ('tm.count("2h")', 'tm.share("dep_delay_minutes", "2h")', "flights.py:17: view 'origin': feature 'departures_2h': share takes bool, not float64"),
    ('tm.count("2h")', 'tm.ewma("dep_delay_minutes", "an hour")', "flights.py:17: view 'origin': feature 'departures_2h': half-life: 'an hour' is not a duration; write \"30s\", \"5m\", \"2h\" or \"7d\""),
    ('tm.count("2h")', 'tm.ewma("dep_delay_minutes", "1s", "30d")', "flights.py:16: view 'origin': feature 'departures_2h' has a half-life below its hop of 86400 s / 64"),
    ('tm.count("2h")', 'tm.first("carrier", None)', "flights.py:17: view 'origin': feature 'departures_2h' needs a window"),
    ('tm.count("2h")', 'tm.count(tm.Session("30m"))', "flights.py:17: view 'origin': feature 'departures_2h': tm.Session is not in this release; a session's bounds hang on every other event of the entity"),
    ('tm.count("2h")', 'tm.quantile("dep_delay_minutes", 0.5, "365d")', "flights.py:16: view 'origin' needs up to 3,"),
    ('by="origin", features', 'by="origin", budget="1 KiB", features', "flights.py:16: view 'origin' needs up to 2,"),
    ('by="origin", features', 'by="origin", budget="small", features', "flights.py:16: view 'origin': budget: 'small' is not a size; write \"64KiB\" or \"1MiB\""),
    ('pipeline = tm.Pipeline(', 'chained = tm.View("chained", origin, by="origin", features={"n": tm.count("2h")})\npipeline = tm.Pipeline(', "flights.py:20: view 'chained': a view over a view is not in this release: a ring's values change"),
    ('tm.count("2h")', '"2h"', "flights.py:17: view 'origin': feature 'departures_2h' is an aggregation such as tm.mean(…), not '2h'"),
    ('"departures_2h"', '"Departures 2h"', "flights.py:17: view 'origin': 'Departures 2h' is no feature name; start with a letter and use a-z, 0-9 and _"),
    ('by="origin"', 'by="orgin"', "flights.py:16: view 'origin': no field 'orgin' in Departed; did you mean 'origin'?"),
    ('by="origin"', 'by="dep_delay_minutes"', "flights.py:16: view 'origin': by takes no float ('dep_delay_minutes'); equal floats are no identity"),
    ('by="origin"', 'by=("origin", "origin")', "flights.py:16: view 'origin': by takes 1 to 4 different fields"),
    ('by="origin"', 'by="origin", accuracy="exactly"', "flights.py:16: view 'origin': there is no accuracy 'exactly'; write \"hop\" (at most a twelfth of the window too long) or \"exact\""),
    ('by="origin"', 'by="origin", edge_events=9', "flights.py:16: view 'origin': edge_events are kept where accuracy is \"exact\""),
    ('by="origin"', 'by="origin", accuracy="exact", edge_events=0', "flights.py:16: view 'origin': edge_events is a number from 1 to 10,000, not 0"),
    ('by="origin", features', 'by="origin", accuracy="exact", budget="8 KiB", features', "flights.py:16: view 'origin' needs up to "),
    ('tm.View("origin", Departed', 'tm.View("origin", "flight-departed"', "flights.py:16: view 'origin': an event class (class X(tm.Event, …)) is wanted, not 'flight-departed'"),
    ('tm.View("origin"', 'tm.View("Origin"', "flights.py:16: view 'Origin': 'Origin' is no name; use a-z, 0-9, - and _, at most 100 characters"),
    # Pipelines.
    ('origin.on("origin")', 'origin.on("orign")', "flights.py:23: pipeline 'delays': feature 'origin': no field 'orign' in Scheduled; did you mean 'origin'?"),
    ('origin.on("origin")', 'origin.on("seats")', "flights.py:23: pipeline 'delays': feature 'origin': 'seats' is int64, but the view's 'origin' is string"),
    ('origin.on("origin")', 'origin.on("origin", "tailnum")', "flights.py:23: pipeline 'delays': feature 'origin': view 'origin' is kept by (origin); on() takes one field for each"),
    ('origin.on("origin")', "origin", "flights.py:23: pipeline 'delays': feature 'origin': write view.on(\"…\"), not View("),
    ('"distance": "distance"', '"at": "asked_at"', "flights.py:23: pipeline 'delays': feature 'at': a timestamp is no feature; use parts of it, such as hour(…) or dow(…)"),
    ('"distance": "distance"', '"x": "hour(asked_att)"', "flights.py:23: pipeline 'delays': feature 'x': no field 'asked_att' in Scheduled; did you mean 'asked_at'?"),
    ('"distance": "distance"', '"x": "distance / orgin.departures_2h"', "flights.py:23: pipeline 'delays': feature 'x': no view is looked up as 'orgin'; did you mean 'origin'?"),
    ('"distance": "distance"', '"x": "distance / scheduled.seats"', "flights.py:23: pipeline 'delays': feature 'x': no view is looked up as 'scheduled'; looked up are origin"),
    ('"distance": "distance"', '"x": "distance / origin.departures_3h"', "flights.py:23: pipeline 'delays': feature 'x': no feature 'departures_3h' in 'origin'; did you mean 'departures_2h'?"),
    ('"distance": "distance"', '"x": "distance / departures_2h"', "flights.py:23: pipeline 'delays': feature 'x': no field 'departures_2h' in Scheduled; of what is looked up it is origin.departures_2h"),
    ('"distance": "distance"', '"x": "distance / a.origin.departures_2h"', "flights.py:23: pipeline 'delays': feature 'x': write the field's bare name, not 'a.origin.departures_2h'"),
    ('tm.last("carrier", "2h")', 'tm.last("departed_at", "2h")', "flights.py:23: pipeline 'delays': feature 'origin': 'carrier' of view 'origin' is a timestamp, which no model takes"),
    ("dep_delay_minutes > 15", "dep_delay_minutes", "flights.py:24: pipeline 'delays': label: a label of type float64 (regression, multi-class) is not in this release; write a condition"),
    ('by="flight_id", wait', 'by="flight", wait', "flights.py:24: pipeline 'delays': label: by: no field 'flight' in Scheduled; did you mean 'flight_id'?"),
    ('tm.Label(Departed, "dep_delay_minutes > 15"', 'tm.Label(Scheduled, "seats > 15"', "flights.py:24: pipeline 'delays': label: it comes from the request's own stream, so it would be known when asking"),
    ('wait="36h"', 'wait="36h", absent=0', "flights.py:24: pipeline 'delays': label: absent is True or False, what a request without an event counts as, not 0"),
    ('wait="36h"', 'wait="60d", absent=False', "flights.py:26: pipeline 'delays': train: window: 60d is no longer than the label's wait, so that no row has waited for its label; make it longer"),
    ('wait="36h"', 'wait="later"', "flights.py:24: pipeline 'delays': label: wait: 'later' is not a duration"),
    ("tm.XGBoost(max_depth=tm.Int(3, 8))", 'tm.Sklearn("ensemble.RandomForestClassifier")', "flights.py:25: pipeline 'delays': learner: tm.Sklearn is not in this release; there are tm.XGBoost and tm.River"),
    ("tm.XGBoost(max_depth=tm.Int(3, 8))", "tm.LightGBM()", "flights.py:25: pipeline 'delays': learner: tm.LightGBM is not in this release"),
    ("tm.XGBoost(max_depth=tm.Int(3, 8))", 'tm.River("tree.HoeffdingTreeClassifier")', "flights.py:25: pipeline 'delays': learner: river 'tree.HoeffdingTreeClassifier' is not in this release; there is linear_model.LogisticRegression"),
    ("max_depth=tm.Int(3, 8)", "max_deph=tm.Int(3, 8)", "flights.py:25: pipeline 'delays': learner: parameter 'max_deph': unknown parameter 'max_deph'; did you mean 'max_depth'?"),
    ("max_depth=tm.Int(3, 8)", "max_depth=tm.Float(3, 8)", "flights.py:25: pipeline 'delays': learner: parameter 'max_depth': it is a whole number; use tm.Int"),
    ("max_depth=tm.Int(3, 8)", "max_depth=tm.Int(8, 3)", "flights.py:25: pipeline 'delays': learner: parameter 'max_depth': tm.Int takes whole numbers, low to high, not 8 and 3"),
    ("max_depth=tm.Int(3, 8)", "gamma=tm.Float(0, 1, log=True)", "flights.py:25: pipeline 'delays': learner: parameter 'gamma': a logarithmic range starts above zero"),
    ("max_depth=tm.Int(3, 8)", "gamma=tm.Choice()", "flights.py:25: pipeline 'delays': learner: parameter 'gamma': 1 to 50 options are possible"),
    ("max_depth=tm.Int(3, 8)", 'gamma="big"', "flights.py:25: pipeline 'delays': learner: parameter 'gamma': a finite number is needed, not 'big'"),
    ('tm.Train(window="60d")', 'tm.Train(window="60d", trials=0)', "flights.py:26: pipeline 'delays': train: trials: a whole number from 1 to 200 is needed, not 0"),
    ('tm.Train(window="60d")', '"60d"', "flights.py:20: pipeline 'delays': train: tm.Train(…) is wanted, not '60d'"),
    ('tm.Better("log_loss"', 'tm.Better("logloss"', "flights.py:27: pipeline 'delays': gates: Better: metric: unknown 'logloss'; did you mean 'log_loss'?"),
    ('than="champion"', 'than="static"', "flights.py:27: pipeline 'delays': gates: Better: than: unknown 'static'; there are champion"),
    ('tm.Better("log_loss", than="champion")', 'tm.Slices("carrier", metric="log_loss", max_regression=0.1)', "flights.py:27: pipeline 'delays': gates: Slices: unknown category feature 'carrier'; did you mean 'origin.carrier'?"),
    ('tm.Better("log_loss", than="champion")', 'tm.AtLeast("roc_auc", "high")', "flights.py:27: pipeline 'delays': gates: AtLeast: a number from 0 to 1 is needed, not 'high'"),
    ('tm.Better("log_loss", than="champion")', 'tm.AtLeast("roc_auc", 7)', "flights.py:27: pipeline 'delays': gates: AtLeast: a number from 0 to 1 is needed, not 7"),
    ("tm.Canary(0.1,", "tm.Canary(10,", "flights.py:28: pipeline 'delays': rollout: Canary: share: a number from 0.001 to 0.999 is needed, not 10"),
    ('tm.Shadow("12h"), tm.Canary(0.1, "12h")', 'tm.Canary(0.5, "12h"), tm.Canary(0.1, "12h")', "flights.py:28: pipeline 'delays': rollout: Canary: each step gives the challenger at least the share of the one before"),
    ('tm.Shadow("12h")', 'tm.Shadow("12h", min_labels=0)', "flights.py:28: pipeline 'delays': rollout: Shadow: min_labels: a whole number from 1 to 1,000,000 is needed, not 0"),
    ('tm.Performance("log_loss", limit=0.05)', 'tm.Performance("roc_auc", limit=0.05), tm.Performance("log_loss", limit=0.1)', "flights.py:29: pipeline 'delays': monitors: Performance: metric: unknown 'roc_auc'; there are log_loss"),
    ('tm.Performance("log_loss", limit=0.05)', "tm.DataQuality()", "flights.py:29: pipeline 'delays': monitors: tm.DataQuality is not in this release"),
    ('tm.Performance("log_loss", limit=0.05)', 'tm.Fairness("carrier")', "flights.py:29: pipeline 'delays': monitors: tm.Fairness is not in this release"),
    ('[tm.Performance("log_loss", limit=0.05)]', "[]", "flights.py:30: pipeline 'delays': retrain: Drift: nothing watches the loss; add tm.Performance("),
    ("tm.Drift(), ", "tm.NewLabels(1000), ", "flights.py:30: pipeline 'delays': retrain: tm.NewLabels is not in this release; there are tm.Drift and tm.Every"),
    ('[tm.Drift(), tm.Every("28d")]', "[]", "flights.py:30: pipeline 'delays': retrain: on=[…] names no trigger; there are tm.Drift() and tm.Every(…)"),
    ('tm.Every("28d")]', 'tm.Every("28d")], budget="six a month"', "flights.py:30: pipeline 'delays': retrain: budget: 'six a month' is not a budget; write \"6 per 90d\""),
    ('tm.Every("28d")]', 'tm.Every("28d")], false_alarms="0 per 90d"', "flights.py:30: pipeline 'delays': retrain: false_alarms: a count and a period above zero are needed"),
    # What is of another kind than wanted.
    ('key="flight_id", time="asked_at"', 'key=["flight_id"], time="asked_at"', "flights.py:3: event Scheduled: key: the name of a field is wanted, not ['flight_id']"),
    ("seats: int", 'seats: "int("', "flights.py:3: event Scheduled: a field's type is not understood: "),
    ('tm.View("origin"', 'tm.View(["origin"]', "flights.py:16: view: ['origin'] is no name; use a-z, 0-9, - and _, at most 100 characters"),
    ('by="origin"', "by=None", "flights.py:16: view 'origin': by takes a field (\"flight_id\") or a list of fields, not None"),
    ('by="origin"', "by=5", "flights.py:16: view 'origin': by takes a field (\"flight_id\") or a list of fields, not 5"),
    ('by="origin"', "by=Departed", "flights.py:16: view 'origin': by takes a field (\"flight_id\") or a list of fields, not <class "),
    ('by="origin"', 'by=[["origin"]]', "flights.py:16: view 'origin': the name of a field is wanted, not ['origin']"),
    ('by="origin"', 'by="origin", accuracy="exact", edge_events=True', "flights.py:16: view 'origin': edge_events is a number from 1 to 10,000, not True"),
    ('tm.count("2h")', 'tm.histogram("dep_delay_minutes", 5, "2h")', "flights.py:17: view 'origin': feature 'departures_2h': edges are a list of 1 to 64 numbers that rise, not 5"),
    ('tm.count("2h")', 'tm.histogram("dep_delay_minutes", None, "2h")', "flights.py:17: view 'origin': feature 'departures_2h': edges are a list of 1 to 64 numbers that rise, not None"),
    ('tm.count("2h")', 'tm.histogram("dep_delay_minutes", [10**400], "2h")', "flights.py:17: view 'origin': feature 'departures_2h': edges are a list of 1 to 64 numbers that rise, not [1000"),
    ('tm.count("2h")', 'tm.count("2h", where="carrier = \'\\ud800\'")', "flights.py:17: view 'origin': feature 'departures_2h': where: '\\ud800' is half of a surrogate pair and no character; leave it out"),
    ('tm.count("2h")', 'tm.count(["2h"])', "flights.py:17: view 'origin': feature 'departures_2h': ['2h'] is not a duration"),
    ('tm.Pipeline(\n    "delays"', 'tm.Pipeline(\n    ["delays"]', "flights.py:20: pipeline: ['delays'] is no name"),
    ('origin.on("origin")', 'origin.on(["origin"])', "flights.py:23: pipeline 'delays': feature 'origin': the name of a field is wanted, not ['origin']"),
    ('by="flight_id", wait', 'by=["flight_id"], wait', "flights.py:24: pipeline 'delays': label: by: the name of a field is wanted, not ['flight_id']"),
    ("max_depth=tm.Int(3, 8)", "learning_rate=10**400", "flights.py:25: pipeline 'delays': learner: parameter 'learning_rate': a finite number is needed, not 1000"),
    ('tm.Better("log_loss", than="champion")', 'tm.Slices(["carrier"], metric="log_loss", max_regression=0.1)', "flights.py:27: pipeline 'delays': gates: Slices: unknown category feature ['carrier']; there are origin.carrier"),
    ('[tm.Better("log_loss", than="champion")]', 'tm.Better("log_loss")', "flights.py:20: pipeline 'delays': gates: a list is wanted, write [tm.Better(…)]"),
    ('[tm.Performance("log_loss", limit=0.05)]', 'tm.Performance("log_loss", limit=0.05)', "flights.py:20: pipeline 'delays': monitors: a list is wanted, write [tm.Performance(…)]"),
    ('[tm.Performance("log_loss", limit=0.05)]', "None", "flights.py:20: pipeline 'delays': monitors: a list is wanted, not None"),
    ('[tm.Performance("log_loss", limit=0.05)]', '(one for one in [tm.Performance("log_loss", limit=0.05)])', "flights.py:20: pipeline 'delays': monitors: a list is wanted, not <generator"),
    ("max_depth=tm.Int(3, 8)", 'gamma=tm.Float(1, 2, log="yes")', "flights.py:25: pipeline 'delays': learner: parameter 'gamma': log is True or False, not 'yes'"),
    # What a learner's library does not take.
    ("max_depth=tm.Int(3, 8)", "max_depth=-3", "flights.py:25: pipeline 'delays': learner: parameter 'max_depth': it must be at least 0, not -3"),
    ("max_depth=tm.Int(3, 8)", "n_estimators=tm.Int(0, 8)", "flights.py:25: pipeline 'delays': learner: parameter 'n_estimators': it must be at least 1, not 0"),
    ("max_depth=tm.Int(3, 8)", "learning_rate=tm.Float(-1, 0.5)", "flights.py:25: pipeline 'delays': learner: parameter 'learning_rate': it must be at least 0 and at most 1, not -1"),
    ("max_depth=tm.Int(3, 8)", "subsample=tm.Choice(0.5, 7.0)", "flights.py:25: pipeline 'delays': learner: parameter 'subsample': it must be above 0 and at most 1, not 7.0"),
    ("max_depth=tm.Int(3, 8)", "colsample_bytree=0.0", "flights.py:25: pipeline 'delays': learner: parameter 'colsample_bytree': it must be above 0 and at most 1, not 0.0"),
    ("tm.XGBoost(max_depth=tm.Int(3, 8))", 'tm.River("linear_model.LogisticRegression", l2=-1)', "flights.py:25: pipeline 'delays': learner: parameter 'l2': it must be at least 0, not -1"),
    # Python itself.
    ("import tidemill as tm", "import tidemill as tm\nimport nowhere_at_all", "flights.py:3: ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ("    request=Scheduled,", "    request=Scheduled", "flights.py:22: not Python: "),
    ('tm.count("2h")', 'tm.count("2h"), "departures_2h": tm.count("1h")', "flights.py:17: 'departures_2h' stands here again, after line 17; Python keeps the last: rename one"),
    ("    flight_id: str\n", "    flight_id: str\n    flight_id: int\n", "flights.py:5: 'flight_id' stands here again, after line 4; Python keeps the last: rename one"),
    ("    request=Scheduled,", "    requst=Scheduled,", "flights.py:20: Pipeline() got an unexpected keyword argument 'requst'; did you mean 'request'?"),
    ('by="origin"', 'by="origin", maxage="1d"', "flights.py:16: View() got an unexpected keyword argument 'maxage'; did you mean 'max_age'?"),
    ('wait="36h"', 'wiat="36h"', "flights.py:24: Label() got an unexpected keyword argument 'wiat'; did you mean 'wait'?"),
    ('tm.count("2h")', 'tm.count("2h", were="true")', "flights.py:17: count() got an unexpected keyword argument 'were'; did you mean 'where'?"),
    ('tm.count("2h")', 'tm.mean("dep_delay_minutes", "2h", by="x")', "flights.py:17: mean() got an unexpected keyword argument 'by'; it takes expression, where, window"),
    ('origin.on("origin")', 'origin.on(field="origin")', "flights.py:23: View.on() got an unexpected keyword argument 'field'"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "wanted"), FAULTS, ids=[wanted.split(": ", 1)[1][:60] for *_, wanted in FAULTS])
def test_a_fault_is_named_with_its_line_and_its_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, wanted: str
) -> None:
    assert old in GOOD
    found = problems_of(tmp_path, monkeypatch, GOOD.replace(old, new, 1))
    assert any(sentence.startswith(wanted) for sentence in found), found


def test_faults_in_several_places_are_told_together_in_the_order_of_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = GOOD.replace('tm.count("2h")', 'tm.count("2 h")').replace("log_loss", "logloss").replace('"36h"', '"36"')
    found = problems_of(tmp_path, monkeypatch, text)
    assert [sentence.split(":")[1] for sentence in found] == ["17", "24", "27", "29"]


def test_a_fault_in_a_stream_is_told_once_and_not_again_by_all_that_stands_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = problems_of(tmp_path, monkeypatch, GOOD.replace("dep_delay_minutes: float", "dep_delay_minutes: bytes"))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seats: int", "seats: bytes"),
        ('by="origin"', 'by="orgin"'),
        ('"distance": "distance"', '"x": "nowhere"'),
        ('origin.on("origin")', 'origin.on("orign")'),
        ('features={"origin": origin.on("origin"), "distance": "distance"}', "features=[]"),
    ],
)
def test_a_fault_in_a_feature_is_not_told_again_by_the_gate_that_slices_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    gate = 'tm.Slices("origin.carrier", metric="log_loss", max_regression=0.1)'
    text = GOOD.replace('tm.Better("log_loss", than="champion")', gate)
    assert old in text
    assert len(problems_of(tmp_path, monkeypatch, text.replace(old, new, 1))) == 1


def test_monitors_that_are_no_list_are_not_said_to_watch_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = GOOD.replace('[tm.Performance("log_loss", limit=0.05)]', 'tm.Performance("log_loss", limit=0.05)')
    assert len(problems_of(tmp_path, monkeypatch, text)) == 1


ODD = """\
class Odd(dict):
    def items(self):
        raise RuntimeError("no such thing")
"""


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        (
            "features={\n",
            "features=Odd(a=1) or {\n",
            "flights.py:19: view 'origin': it is not understood: RuntimeError: ",
        ),
        (
            'features={"origin"',
            'features=Odd(a=1) or {"origin"',
            "flights.py:23: pipeline 'delays': it is not understood: R",
        ),
    ],
)
def test_what_nobody_foresaw_is_a_fault_of_its_declaration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, wanted: str
) -> None:
    found = problems_of(tmp_path, monkeypatch, HEAD + ODD + (VIEW + PIPELINE).replace(old, new, 1))
    assert len(found) == 1
    assert found[0].startswith(wanted)


def test_the_place_in_an_expression_is_pointed_at(tmp_path: Path) -> None:
    path = tmp_path / "flights.py"
    path.write_text(GOOD.replace('"dep_delay_minutes > 15"', '"15 < dep_dealy"'))
    with pytest.raises(DefinitionError) as caught:
        compile_file(path)
    assert caught.value.problems[0].pointer == "15 < dep_dealy\n     ^"


def test_a_file_without_events_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems_of(tmp_path, monkeypatch, "import tidemill as tm\n") == [
        "flights.py:0: it declares no event, so there is nothing to register"
    ]


def test_a_missing_file_is_a_fault_like_any_other(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="cannot be read: No such file"):
        compile_file(tmp_path / "none.py")
