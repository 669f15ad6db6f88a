"""Ending views, allowing what breaks, and adding partitions from the command line, on the real servers."""

import json
from pathlib import Path
from time import time_ns
from typing import Any

import pytest
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as ingestion
from tidemill_testkit.eventually import aeventually

pytestmark = pytest.mark.servers

FLIGHTS = Path(__file__).parents[2] / "docs/examples/flights/flights.py"
RIDES = '''
"""Rides of a park."""
from datetime import datetime
import tidemill as tm

class Ride(tm.Event, stream="rides", key="ride_id", time="ended_at", partitions={partitions}):
    ride_id: str
    gate: str
    tip: float | None
    ended_at: datetime

gates = tm.View("gates", Ride, by="gate", features={{"rides_1h": tm.count("1h")}})
tips = tm.View("tips", Ride, by="gate", features={{"tips_1h": tm.sum("tip", "1h")}})
'''
WITHOUT_TIPS = "\n".join(line for line in RIDES.splitlines() if "tip" not in line or "import" in line)


async def test_apply_waits_for_those_that_go_by_it_and_names_who_does_not(desk: Any) -> None:
    alone = await desk.apply(RIDES.format(partitions=1))
    assert list(alone.json["behind"]) == ["ingestion"]
    assert f"not reachable at {desk.ingestion.address}" in alone.json["behind"]["ingestion"]
    assert "not followed yet by ingestion" in (await desk.run("apply", desk.folder / "definition.py")).out
    await desk.ingestion.start()
    assert (await desk.apply(RIDES.format(partitions=1))).json["behind"] == {}


async def test_a_view_is_retired_by_name_and_never_while_a_pipeline_reads_it(desk: Any) -> None:
    await desk.run("apply", FLIGHTS)
    refused = await desk.run("views", "retire", "origin", "--json")
    assert (refused.code, refused.json["reason"]) == (1, "breaking_change")
    assert "breaks pipeline 'flight-delays'" in refused.json["error"]
    assert (await desk.run("apply", desk.write("rides.py", RIDES.format(partitions=1)))).code == 0
    listed = {view["view"]: view for view in (await desk.run("views", "list", "--json")).json["views"]}
    assert listed["origin"]["pipelines"] == ["flight-delays"]
    assert (listed["tips"]["pipelines"], listed["tips"]["features"]) == ([], ["tips_1h"])
    gone = await desk.run("views", "retire", "tips", "--why", "tips are cash now", "--json")
    assert [(one["name"], one["change"], one["revision"]) for one in gone.json["changes"]] == [("tips", "retired", 2)]
    assert "was retired before" in (await desk.run("views", "retire", "tips")).out
    assert "tips" not in (await desk.run("views", "list")).out
    unknown = await desk.run("views", "retire", "nobody", "--json")
    assert (unknown.code, unknown.json["reason"]) == (1, "unknown_view")
    back = await desk.run("apply", desk.write("rides.py", RIDES.format(partitions=1)), "--json")
    assert ("tips", "created", 3) in [(one["name"], one["change"], one["revision"]) for one in back.json["changes"]]


async def test_streams_and_pipelines_are_retired_by_name_once_nothing_uses_them(desk: Any) -> None:
    await desk.ingestion.start()
    assert (await desk.run("apply", FLIGHTS)).code == 0
    refused = await desk.run("streams", "retire", "weather-observed", "--json")
    assert (refused.code, refused.json["reason"]) == (1, "breaking_change")
    assert "breaks view 'weather'" in refused.json["error"]
    assert [one["pipeline"] for one in (await desk.run("pipelines", "list", "--json")).json["pipelines"]] == [
        "flight-delays"
    ]
    assert (await desk.run("pipelines", "retire", "flight-delays", "--allow-breaking")).code == 2
    gone = await desk.run("pipelines", "retire", "flight-delays", "--why", "the season is over", "--json")
    assert [(one["kind"], one["change"]) for one in gone.json["changes"]] == [("pipeline", "retired")]
    assert "no pipelines" in (await desk.run("pipelines", "list")).out
    assert (await desk.run("views", "retire", "weather")).code == 0
    assert (
        "stream weather-observed is retired (revision 2)"
        in (await desk.run("streams", "retire", "weather-observed")).out
    )
    assert "was retired before" in (await desk.run("streams", "retire", "weather-observed")).out
    event = desk.write("weather.ndjson", "{}\n")
    late = await desk.run("push", "weather-observed", event, "--json")
    assert (late.code, "unknown_stream" in late.out + late.err) == (1, True)
    unknown = await desk.run("streams", "retire", "nothing", "--json")
    assert (unknown.code, unknown.json["reason"]) == (1, "unknown_stream")


async def test_a_break_is_refused_until_somebody_allows_it_and_says_why(desk: Any) -> None:
    file = desk.write("rides.py", RIDES.format(partitions=1))
    assert (await desk.run("apply", file)).code == 0
    file.write_text(WITHOUT_TIPS.format(partitions=1))
    refused = await desk.run("apply", file, "--json")
    assert (refused.code, "view 'tips'" in refused.json["error"]) == (1, True)
    assert (await desk.run("apply", file, "--allow-breaking")).code == 2
    # The view that read the field ends along: only producers are left to break.
    done = await desk.run("apply", file, "--retire", "tips", "--allow-breaking", "--reason", "tips are cash", "--json")
    assert done.code == 0, done
    assert [one["breaks"] for one in done.json["breaks"]] == [["its producers"]]

    async def audited() -> bool:
        told = [json.loads(record.value) for record in await desk.log("registry.audit.v1")]
        why = "tips are cash; stream 'rides': field 'tip' would be removed"
        found = [one for one in told if one.get("reason", "").startswith(why)]
        return [(one["object"], one["actor"]) for one in found] == [("stream/rides", "ada")]

    await aeventually(audited, claim="who allowed it, and why, is in the audit trail")


async def test_partitions_are_added_while_events_come_and_watermarks_reach_the_new_ones_at_once(desk: Any) -> None:
    await desk.ingestion.start()
    await desk.apply(RIDES.format(partitions=1))
    rides = desk.write(
        "rides.ndjson",
        "".join(
            f'{{"ride_id": "r-{number}", "gate": "north", "ended_at": "2013-06-04T10:00:00Z"}}\n'
            for number in range(300)
        ),
    )
    assert (await desk.run("push", "rides", rides, "--json")).json["accepted"] == 300
    wider = await desk.apply(RIDES.format(partitions=3))
    assert {(one["name"], one["change"]) for one in wider.json["changes"]} == {
        ("rides", "changed"),
        ("gates", "changed"),
        ("tips", "changed"),
    }
    mark = ingestion.Watermark(streams=["rides"], time_us=time_ns() // 1000)
    written = (await desk.publish(ingestion.PublishBatchRequest(watermark=mark))).written
    assert sorted(place.partition for place in written) == [0, 1, 2]
    again = desk.write("more.ndjson", rides.read_text().replace("r-", "s-"))
    assert (await desk.run("push", "rides", again, "--json")).json["accepted"] == 300

    async def spread() -> bool:
        return all(end > 50 for end in await desk.ends("events.rides"))

    await aeventually(spread, claim="events go to the new partitions")
    fewer = await desk.apply(RIDES.format(partitions=2))
    assert (fewer.code, "they can become more, not 2" in fewer.json["error"]) == (1, True)
