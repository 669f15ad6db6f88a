"""Real bundles from a store to the routing table, the cache and the next start; only Kafka and Redis are left out."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tidemill_contracts.canonical import to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_models.store import LocalStore
from tidemill_runtime.errors import Poison, Retryable
from tidemill_serving.adapters.bundles import BundleLoader, EntryLoader
from tidemill_serving.adapters.last_good import LastGood
from tidemill_serving.assembly import Rings
from tidemill_serving.deployer import Deployer, Steps, ViewsBuildingError
from tidemill_serving.desired import Registered
from tidemill_serving.served import Served
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.flight_world import PIPELINE, VIEWS, Versions, definition_record, deployment


class Replica:
    """What is between the registry's topics and requests, on the folders of a test."""

    def __init__(self, folder: Path, bundles: Versions, *, cached: bool = True) -> None:
        cache = folder / "cache" if cached else None
        opener = BundleLoader(LocalStore(folder / "artifacts"), bundles.key.public_key(), cache)
        loader = EntryLoader(opener, Rings("project", "group"))
        self.last_good = LastGood(cache, loader)
        self.building: set[str] = set()
        self.deployer: Deployer[Served] = Deployer(Steps(loader.load, self._views, self.last_good.remember), 600)

    async def _views(self, entry: Served) -> None:
        if entry.pipeline in self.building:
            raise ViewsBuildingError("view plane is still being built")

    async def serve(self, state: Registered) -> None:
        """Return once all of a state is served."""
        self.deployer.want(state)
        await self.deployer.settled()

    def served(self) -> dict[str, list[int]]:
        """Return the numbers of the versions that serve, by pipeline."""
        return {name: [one.number for one in entry.versions] for name, entry in self.deployer.table.entries.items()}


@asynccontextmanager
async def replica(folder: Path, bundles: Versions, **options: Any) -> AsyncIterator[Replica]:
    one = Replica(folder, bundles, **options)
    task = asyncio.create_task(one.deployer.run())
    try:
        yield one
    finally:
        one.deployer.stop()
        await task


async def served_without_a_store(folder: Path, bundles: Versions) -> dict[str, list[int]]:
    """Return what a start serves from the cache alone."""
    shutil.rmtree(folder / "artifacts", ignore_errors=True)
    async with replica(folder, bundles) as one:
        await one.serve(one.last_good.recall())
        return one.served()


def define(state: Registered, name: str, revision: int = 1, *, retired: bool = False) -> Registered:
    record = definition_record(revision)
    record.name = record.definition.pipelines[0].name = name
    record.hash, record.retired = f"{name} {revision}", retired
    return state.with_definition(to_json(record))


def deploy(
    state: Registered, name: str, revision: int, champion: registry.DeployedVersion, **changes: Any
) -> Registered:
    record = deployment(revision, champion, **changes)
    record.pipeline = name
    return state.with_deployment(name.encode(), to_json(record))


def cached(folder: Path) -> set[str]:
    return {f"sha256:{path.name}" for path in (folder / "cache" / "bundles").iterdir()}


@pytest.mark.parametrize("named", ["{victim}", "sha256:../../victim", "sha256:", "", "sha256:" + "0" * 64 + "/.."])
def test_a_manifest_hash_that_is_none_deletes_nothing(tmp_path: Path, bundles: Versions, named: str) -> None:
    opener = BundleLoader(LocalStore(tmp_path / "artifacts"), bundles.key.public_key(), tmp_path / "cache")
    good = bundles.make(1)
    opener.load(good)
    victim = tmp_path / "victim"
    victim.mkdir()
    version = registry.DeployedVersion(version=2, bundle=good.bundle, manifest_hash=named.format(victim=victim))
    with pytest.raises(Poison, match="the manifest hash of version 2") as caught:
        opener.load(version)
    assert caught.value.field == "manifest_hash"
    assert victim.exists()
    assert cached(tmp_path) == {good.manifest_hash}


def test_a_cached_bundle_that_was_damaged_is_replaced_from_the_store(tmp_path: Path, bundles: Versions) -> None:
    opener = BundleLoader(LocalStore(tmp_path / "artifacts"), bundles.key.public_key(), tmp_path / "cache")
    version = bundles.make(1)
    opener.load(version)
    model = next((tmp_path / "cache" / "bundles").glob("*/model.linear"))
    whole = model.read_bytes()
    model.write_bytes(whole[:-1])
    assert opener.load(version).bundle.manifest_hash == version.manifest_hash
    assert model.read_bytes() == whole


async def test_a_start_after_a_view_was_redefined_says_that_the_deployed_version_does_not_fit(
    tmp_path: Path, bundles: Versions
) -> None:
    changed = [*VIEWS[:-1], definition.View.FromString(VIEWS[-1].SerializeToString())]
    changed[-1].features[0].window_ms *= 2
    state = deploy(Registered(), PIPELINE, 1, bundles.make(1))
    async with replica(tmp_path, bundles) as one:
        one.deployer.want(state.with_definition(to_json(definition_record(2, changed))))
        await one.deployer.attempted()
        with pytest.raises(Poison, match="version 1 was trained on another definition of view 'plane'") as caught:
            one.deployer.entry(PIPELINE)
        assert caught.value.reason is Reason.NO_MODEL


async def test_a_start_after_an_expression_was_redefined_says_that_the_deployed_version_does_not_fit(
    tmp_path: Path, bundles: Versions
) -> None:
    record = definition_record(2)
    (hour,) = [source for source in record.definition.pipelines[0].features if source.name == "hour"]
    hour.expression = "HOUR(asked_at)"
    state = deploy(Registered(), PIPELINE, 1, bundles.make(1))
    async with replica(tmp_path, bundles) as one:
        one.deployer.want(state.with_definition(to_json(record)))
        await one.deployer.attempted()
        with pytest.raises(Poison, match=r"'hour' as 'HOUR\(departs_at\)', which is 'HOUR\(asked_at\)' now"):
            one.deployer.entry(PIPELINE)


async def test_what_waits_for_its_views_stays_cached_while_another_pipeline_is_deployed(
    tmp_path: Path, bundles: Versions
) -> None:
    first, second, third = (bundles.make(number) for number in (1, 2, 3))
    state = define(define(Registered(), "a"), "b")
    state = deploy(deploy(state, "a", 1, first), "b", 1, first)
    async with replica(tmp_path, bundles) as one:
        await one.serve(state)
        one.building = {"a"}
        state = deploy(state, "a", 2, first, challenger=second, step_kind="shadow")
        one.deployer.want(state)
        await aeventually(lambda: one.deployer.pending, claim="a waits for its views")
        state = deploy(state, "b", 2, third)
        one.deployer.want(state)
        await aeventually(lambda: one.served()["b"] == [3], claim="b is deployed meanwhile")
        shutil.rmtree(tmp_path / "artifacts")
        one.building = set()
        await one.deployer.settled()
        assert one.served() == {"a": [1, 2], "b": [3]}
        assert cached(tmp_path) == {version.manifest_hash for version in (first, second, third)}
    assert await served_without_a_store(tmp_path, bundles) == {"a": [1, 2], "b": [3]}


async def test_a_pipeline_that_was_retired_and_applied_again_is_cached_again(tmp_path: Path, bundles: Versions) -> None:
    version = bundles.make(1)
    async with replica(tmp_path, bundles) as one:
        state = deploy(define(Registered(), "a"), "a", 1, version)
        await one.serve(state)
        state = define(state, "a", 2, retired=True)
        await one.serve(state)
        assert not cached(tmp_path)
        await one.serve(deploy(define(state, "a", 3), "a", 3, version))
    assert await served_without_a_store(tmp_path, bundles) == {"a": [1]}


async def test_a_retired_pipelines_bundles_leave_memory(tmp_path: Path, bundles: Versions) -> None:
    async with replica(tmp_path, bundles, cached=False) as one:
        state = deploy(define(Registered(), "a"), "a", 1, bundles.make(1))
        await one.serve(state)
        await one.serve(define(state, "a", 2, retired=True))
        shutil.rmtree(tmp_path / "artifacts")
        # There is no other place left than the store, which is gone.
        with pytest.raises(Retryable, match="missing"):
            await one.serve(define(state, "a", 3))


async def test_what_the_cache_lost_or_could_not_take_is_there_after_the_next_deployment(
    tmp_path: Path, bundles: Versions
) -> None:
    state = define(define(Registered(), "a"), "b")
    async with replica(tmp_path, bundles) as one:
        state = deploy(state, "a", 1, bundles.make(1))
        await one.serve(state)
        shutil.rmtree(tmp_path / "cache")
        await one.serve(deploy(state, "b", 1, bundles.make(2)))
    assert await served_without_a_store(tmp_path, bundles) == {"a": [1], "b": [2]}
