"""The service measures skew by itself, on real servers: none where all is well, and what was broken on purpose."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import redis.asyncio
from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2
from tidemill_contracts.feature.v1 import records_pb2 as records
from tidemill_contracts.instants import format_us
from tidemill_contracts.progress.v1.progress_pb2 import TopicPartitionOffset, WaitProgressRequest
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_features.finalise import HOP_ACCURACY_BIT, STATUS_BITS
from tidemill_features.layout import FINGERPRINT_WORD, shard_prefix
from tidemill_features.plan import HEADER_WORDS
from tidemill_features.reader import Reader
from tidemill_features.vector import PipelineVector, VectorRows, compile_vector
from tidemill_runtime.outgoing import Outgoing
from tidemill_testkit.eventually import aeventually

pytestmark = pytest.mark.servers

DAY_US = 86_400_000_000
PREDICTIONS, SKEW = "serving.predictions.v1", "feature.skew.v1"
HASH = "sha256:risk"
PIPELINE = definition.Pipeline(
    name="risk",
    request="paid",
    features=[
        definition.FeatureSource(name="who", view=definition.ViewLookup(view="payer", on=["payer"])),
        definition.FeatureSource(name="many", view=definition.ViewLookup(view="busy", on=["items"])),
        definition.FeatureSource(name="cut", view=definition.ViewLookup(view="narrow", on=["payer"])),
        definition.FeatureSource(name="doubled", expression="amount * 2"),
        definition.FeatureSource(name="above", expression="amount - who.mean_600s"),
    ],
    label=definition.Label(stream="paid", expression="amount > 1", by="payment"),
)
Request = Mapping[str, Any]
Answer = tuple[Any, str]


class Serving:
    """Predictions as serving makes them: features read from the rings, logged with the positions they had."""

    def __init__(self, world: Any) -> None:
        self._world = world
        views = {view.name: view for view in (world.payer, world.busy, world.narrow)}
        self.vector: PipelineVector = compile_vector(PIPELINE, views, {"paid": world.stream})
        self._redis = redis.asyncio.Redis.from_url(world.redis_url)
        self._reader = Reader(self.vector.plans, project=world.project)
        # By prediction and feature of a view: (value, status) as served, and by brute force over what was sent by then.
        self.served: dict[tuple[str, str], Answer] = {}
        self.right: dict[tuple[str, str], Answer] = {}
        # Those of exact windows that could not be cut, as served and by brute force.
        self.coarse: set[tuple[str, str]] = set()
        self.rightly_coarse: set[tuple[str, str]] = set()

    async def register(self) -> None:
        """Register pipeline and model version."""
        world = self._world
        closure = definition.Definition(
            streams=[world.stream], views=[world.payer, world.busy, world.narrow], pipelines=[PIPELINE]
        )
        record = definition.DefinitionRecord(kind="pipeline", name="risk", revision=1, hash=HASH, definition=closure)
        columns = zip(self.vector.names, self.vector.category, strict=True)
        version = registry.VersionRecord(
            pipeline="risk",
            version=1,
            stage="champion",
            features=[registry.FeatureColumn(name=name, category=category) for name, category in columns],
        )
        await world.send(
            Outgoing("registry.pipelines.v1", to_json(record), key=b"pipeline/risk"),
            Outgoing("registry.models.v1", to_json(version), key=b"risk/1"),
        )

    async def predict(self, requests: Sequence[Request], as_of_us: int) -> None:
        """Log a prediction for each request, after one of another pipeline that was asked with the same id."""
        asked = self._reader.request(self.vector.lookups(requests))
        raws: Any = await self._redis.mget(asked.keys)
        result = self._reader.values(asked, raws, as_of_us)
        rows = self.vector.rows(result.views, self.vector.columns(requests), len(requests))
        positions = [
            TopicPartitionOffset(topic=place.topic, partition=place.partition, next_offset=offset)
            for place, offset in result.positions.items()
        ]
        logged: list[Outgoing] = []
        for place, request in enumerate(requests):
            self._note(request, as_of_us, rows, place)
            numbers = [rows.numbers[name][place] for name in rows.names if name in rows.numbers]
            categories = [rows.categories[name][place] or "" for name in rows.names if name in rows.categories]
            features = serving.ServedFeatures(
                numbers=numbers, categories=categories, statuses=rows.status[place].tobytes()
            )
            shared: dict[str, Any] = {
                "prediction_id": f"{request['payment']}/{as_of_us}",
                "join_key": request["payment"],
                "as_of_us": as_of_us,
                "model_version": 1,
                "features": features,
                "positions": positions,
                "request_json": json.dumps(request).encode(),
            }
            record = serving.PredictionRecord(pipeline="risk", definition_hash=HASH, **shared)
            other = serving.PredictionRecord(pipeline="other", definition_hash="sha256:other", **shared)
            key = request["payment"].encode()
            logged += [Outgoing(PREDICTIONS, one.SerializeToString(), key=key, partition=0) for one in (other, record)]
        await self._world.send(*logged)

    def _note(self, request: Request, as_of_us: int, rows: VectorRows, place: int) -> None:
        """Keep what is served, and what would be right."""
        world, names = self._world, list(rows.names)
        columns: dict[str, Any] = {**rows.numbers, **rows.categories}
        sources = (("who", world.payer, "payer"), ("many", world.busy, "items"), ("cut", world.narrow, "payer"))
        for source, view, on in sources:
            # Without a key there is nothing to be right about.
            answers = world.log.answers(view, request[on], as_of_us) if request[on] is not None else []
            for part, answer in zip(view.features, answers, strict=False):
                name = f"{source}.{part.name}"
                served = columns[name][place]
                number = int(rows.status[place][names.index(name)])
                said = feature_pb2.Status.Name(number & STATUS_BITS).removeprefix("STATUS_")  # type: ignore[arg-type]
                key_of = (f"{request['payment']}/{as_of_us}", name)
                self.served[key_of] = (None if served is None or served != served else served, said)
                self.right[key_of] = (answer.value, answer.status)
                self.coarse |= {key_of} if number & HOP_ACCURACY_BIT else set()
                self.rightly_coarse |= {key_of} if answer.coarse else set()
        mean = self.right.get((f"{request['payment']}/{as_of_us}", "who.mean_600s"), (None, ""))[0]
        key_of = (f"{request['payment']}/{as_of_us}", "above")
        above = columns["above"][place]
        self.served[key_of] = (None, "NULL") if above != above else (above, "PRESENT")
        self.right[key_of] = (None, "NULL") if mean is None else (request["amount"] - mean, "PRESENT")

    async def corrupt(self, payer: str) -> int:
        """Add one to every float sum of a payer's rings, as no worker would; return how many shards were damaged."""
        (plan,) = [plan for plan in self.vector.plans if plan.name == "payer"]
        found = 0
        pattern = shard_prefix(self._world.project, plan.hash) + payer.encode() + b"}*"
        async for key in self._redis.scan_iter(pattern):
            raw: Any = await self._redis.get(key)
            fingerprint = int(np.frombuffer(raw, np.int64, HEADER_WORDS)[FINGERPRINT_WORD])
            ring = next(ring for ring in plan.rings if ring.fingerprint == fingerprint)
            words = np.frombuffer(raw, np.int64, ring.words).copy()
            floats = words.view(np.float64)
            for partial in ring.partials:
                if partial.kind.name == "SUM" and partial.dtype.name == "FLOAT":
                    floats[HEADER_WORDS + partial.word :: ring.slot_words] += 1.0
                    found += 1
            await self._redis.set(key, words.tobytes() + raw[ring.words * 8 :])
        return found

    async def close(self) -> None:
        await self._redis.aclose()


def payments(day_us: int, count: int) -> list[dict[str, Any]]:
    """Return payments of a few payers; some without an amount, one of nobody."""
    return [
        {
            "at_us": day_us + number * 1_000_000,
            "partition": number % 2,
            "id": f"{day_us}-{number}",
            "fields": {
                "payment": f"{day_us}-{number}",
                "payer": None if number == 7 else f"p{number % 5}",
                "amount": None if number % 4 == 0 else number / 7,
                "items": number % 3,
            },
        }
        for number in range(count)
    ]


def requests(day_us: int) -> list[Request]:
    payers: list[str | None] = [*(f"p{number}" for number in range(5)), "nobody", None]
    return [
        {"payment": f"r{place}", "payer": payer, "amount": 0.1 * place, "items": place, "at": format_us(day_us)}
        for place, payer in enumerate(payers)
    ]


async def measured(world: Any, count: int) -> list[records.SkewRecord]:
    """Return the first records of the skew topic, once there are as many."""

    async def there() -> list[Any]:
        found: list[Any] = await world.read(SKEW)
        assert len(found) >= count
        return found

    return [from_json(one.value, records.SkewRecord()) for one in await aeventually(there)]


async def serving_and_service(world: Any, database: str) -> tuple[Serving, Any]:
    """Return what logs predictions, and the service in both roles, which samples all of them."""
    for topic in (PREDICTIONS, "monitoring.outcomes.v1", SKEW):
        await world.create(topic, 1)
    served = Serving(world)
    await world.register(world.payer, world.busy, world.narrow)
    await served.register()
    process = await world.start(
        ROLES="online,offline",
        POSTGRES__DSN=database,
        WAREHOUSE=str(world.folder / "warehouse"),
        ARCHIVE_EVERY_S="0.2",
        SKEW_SHARE="1",
        SKEW_PAUSE_S="0",
    )
    return served, process


async def test_skew_is_zero_where_brute_force_was_served_and_names_what_was_not(world: Any, database: str) -> None:
    served, process = await serving_and_service(world, database)
    first_us, days = world.noon_us, []
    for day in range(3):
        day_us = first_us + day * DAY_US
        await world.pay(payments(day_us, 60))
        await process.reached(await world.ends())
        if day == 1:
            # Not read again by the worker, which has them in memory; but served.
            assert await served.corrupt("p1")
        # Now, later in the windows, and a moment that lies in the past of what was folded.
        before = len(served.right)
        for as_of_us in (day_us + 60_000_000, day_us + 400_000_000, day_us + 30_500_000):
            await served.predict(requests(day_us), as_of_us)
        days.append(list(served.right)[before:])
        archived = [*await world.ends(), TopicPartitionOffset(topic=PREDICTIONS, next_offset=2 * 21 * (day + 1))]
        await process.progress.WaitProgress(WaitProgressRequest(stage="offline", offsets=archived), timeout=60)
    await served.close()
    healthy, broken = (await measured(world, 2))[:2]
    assert (healthy.rows, healthy.differing, dict(healthy.left_out)) == (21, 0, {})
    assert {place: served.served[place] for place in days[0]} == {place: served.right[place] for place in days[0]}
    assert served.coarse == served.rightly_coarse
    assert {name for _, name in served.coarse} == {"cut.mean_600s"}
    assert healthy.compared == 21 * len(served.vector.names)
    assert "all 210 feature values of 21 sampled predictions" in healthy.summary
    differing = {one.feature: one for view in broken.views for one in view.features if one.differing}
    assert list(differing) == ["who.mean_600s", "above"]
    assert [one.differing for one in differing.values()] == [3, 3]
    wrong = [place for place in days[1] if served.served[place] != served.right[place]]
    assert {(prediction.partition("/")[0], name) for prediction, name in wrong} == {
        ("r1", "who.mean_600s"),
        ("r1", "above"),
    }
    for name, feature in differing.items():
        apart = [abs(served.served[place][0] - served.right[place][0]) for place in wrong if place[1] == name]
        assert feature.largest_difference == max(apart)
    for one in broken.examples:
        place = (one.prediction_id, one.feature)
        assert (float(one.served.split()[0]), one.served.split()[1]) == served.served[place]
        assert (float(one.recomputed.split()[0]), one.recomputed.split()[1]) == served.right[place]
    assert "look at the rings of view payer" in broken.summary
    assert {(one.prediction_id, one.feature) for one in broken.examples} <= set(wrong)
    assert broken.examples


async def test_predictions_that_saw_a_topic_of_before_are_not_compared_with_the_one_made_anew(
    world: Any, database: str
) -> None:
    served, process = await serving_and_service(world, database)
    logged = 0
    for day in range(3):
        day_us = world.noon_us + day * DAY_US
        await world.pay(payments(day_us, 60))
        await process.reached(await world.ends())
        await served.predict(requests(day_us), day_us + 60_000_000)
        logged += 2 * 7
        archived = [*await world.ends(), TopicPartitionOffset(topic=PREDICTIONS, next_offset=logged)]
        await process.progress.WaitProgress(WaitProgressRequest(stage="offline", offsets=archived), timeout=60)
        if day == 0:
            # Other payments come to the same offsets, of the same days too.
            await world.recreate("events.paid", 2)
            # Until then what is read, and the offsets that it names, are the former topic's.
            await aeventually(lambda: process.output.read_text().count("the_log_is_another_one") == 2)
            world.log.records.clear()
            others = payments(day_us, 60)
            await world.pay(
                {**one, "id": f"{one['id']}'", "fields": {**one["fields"], "amount": 9.0}} for one in others
            )
    await served.close()
    before, after = (await measured(world, 2))[:2]
    assert (before.rows, before.compared, dict(before.left_out)) == (0, 0, {"not_archived": 7})
    # The rings of the view's next build are not those that this test reads.
    assert (after.rows, dict(after.left_out)) == (7, {})
