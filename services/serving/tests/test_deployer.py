import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tidemill_contracts.canonical import to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_runtime.errors import Poison, Retryable
from tidemill_serving.adapters.last_good import LastGood
from tidemill_serving.deployer import Deployer, State, Steps, ViewsBuildingError
from tidemill_serving.desired import Registered, Wanted
from tidemill_testkit.eventually import aeventually


def registered(
    revision: int,
    champion: int = 1,
    name: str = "flight-delays",
    older: Registered | None = None,
    bundle: str = "sha256:b",
) -> Registered:
    pipeline = definition.DefinitionRecord(kind="pipeline", name=name, revision=1, hash="sha256:d")
    deployment = registry.DeploymentRecord(
        pipeline=name, revision=revision, champion=registry.DeployedVersion(version=champion, manifest_hash=bundle)
    )
    state = (older or Registered()).with_definition(to_json(pipeline))
    return state.with_deployment(name.encode(), to_json(deployment))


class Loader:
    """Loads champions by number: 13 is refused until `mended`, 14 cannot be reached until `reachable`, the views of 15
    are not there until `built`."""

    def __init__(self) -> None:
        self.mended = self.reachable = self.built = False
        self.loads = 0
        self.gate: asyncio.Event | None = None
        self.remembered: list[Registered] = []

    async def load(self, wanted: Wanted) -> int:
        if self.gate is not None:
            await self.gate.wait()
        champion = wanted.deployment.champion.version
        self.loads += 1
        if champion == 13 and not self.mended:
            raise Poison(Reason.CONFLICT, "the signature does not fit")
        if champion == 14 and not self.reachable:
            raise Retryable("the store is away")
        return champion

    async def views(self, champion: int) -> None:
        if champion == 15 and not self.built:
            raise ViewsBuildingError("view plane is still being built")

    async def remember(self, served: Registered, wanted: Registered) -> None:
        self.remembered.append(served)


@asynccontextmanager
async def deploying(loader: Loader, views_wait_s: float = 20) -> AsyncIterator[Deployer[int]]:
    deployer: Deployer[int] = Deployer(Steps(loader.load, loader.views, loader.remember), views_wait_s)
    task = asyncio.create_task(deployer.run())
    try:
        yield deployer
    finally:
        deployer.stop()
        await task


async def test_what_is_wanted_is_served_and_remembered() -> None:
    loader = Loader()
    async with deploying(loader) as deployer:
        deployer.want(registered(1))
        await deployer.settled()
        assert dict(deployer.table.entries) == {"flight-delays": 1}
        assert set(loader.remembered[-1].wanted()) == {"flight-delays"}


async def test_what_cannot_be_loaded_now_is_remembered_beside_what_serves() -> None:
    loader = Loader()
    async with deploying(loader) as deployer:
        deployer.want(registered(1, name="other", older=registered(1, champion=14)))
        await aeventually(lambda: bool(deployer.table.entries))
        assert dict(deployer.table.entries) == {"other": 1}
        assert set(loader.remembered[-1].wanted()) == {"flight-delays", "other"}


async def test_the_old_entry_serves_until_the_new_one_is_loaded() -> None:
    loader = Loader()
    async with deploying(loader) as deployer:
        deployer.want(registered(1))
        await deployer.settled()
        loader.gate = asyncio.Event()
        deployer.want(registered(2, champion=2))
        waiting = asyncio.create_task(deployer.settled())
        await asyncio.sleep(0.01)
        assert dict(deployer.table.entries) == {"flight-delays": 1}
        assert not waiting.done()
        loader.gate.set()
        await waiting
        assert dict(deployer.table.entries) == {"flight-delays": 2}


async def test_a_refused_deployment_leaves_the_last_good_one_and_says_so() -> None:
    loader = Loader()
    async with deploying(loader) as deployer:
        deployer.want(registered(1))
        await deployer.settled()
        deployer.want(registered(2, champion=13))
        with pytest.raises(Retryable, match="signature"):
            await deployer.settled()
        assert dict(deployer.table.entries) == {"flight-delays": 1}
        assert loader.remembered[-1].wanted()["flight-delays"].deployment.revision == 1
        assert deployer.entry("flight-delays") == 1
        deployer.want(registered(1))
        await deployer.settled()
        deployer.want(registered(2, champion=13))
        deployer.want(registered(3, champion=2))
        await deployer.settled()
        assert dict(deployer.table.entries) == {"flight-delays": 2}
        assert not deployer.pending


async def test_what_served_last_is_remembered_and_not_what_was_refused_since() -> None:
    loader = Loader()
    async with deploying(loader) as deployer:
        deployer.want(registered(1))
        await deployer.settled()
        deployer.want(registered(1, name="other", older=registered(2, champion=13)))
        await deployer.attempted()
        assert dict(deployer.table.entries) == {"flight-delays": 1, "other": 1}
        assert loader.remembered[-1].wanted()["flight-delays"].deployment.revision == 1


async def test_a_bundle_that_cannot_be_reached_is_tried_again_and_holds_up_no_other_pipeline() -> None:
    loader = Loader()
    async with deploying(loader) as deployer:
        deployer.want(registered(1, champion=2, name="other", older=registered(1, champion=14)))
        settled = asyncio.create_task(deployer.settled())
        await aeventually(lambda: deployer.table.entries)
        assert dict(deployer.table.entries) == {"other": 2}
        assert not settled.done()
        loader.reachable = True
        await settled
        assert dict(deployer.table.entries) == {"flight-delays": 14, "other": 2}


async def test_a_refused_deployment_is_tried_again_and_served_once_it_is_right() -> None:
    loader = Loader()
    async with deploying(loader) as deployer:
        deployer.want(registered(1, champion=13, older=registered(1, champion=2, name="other")))
        with pytest.raises(Retryable, match=r"flight-delays revision 1 \(refused\): the signature"):
            await deployer.settled()
        assert dict(deployer.table.entries) == {"other": 2}
        loader.mended = True
        await aeventually(lambda: not deployer.pending, claim="it is looked at again by itself")
        assert dict(deployer.table.entries) == {"flight-delays": 13, "other": 2}
        await deployer.settled()


async def test_a_version_takes_over_only_when_its_views_are_built() -> None:
    loader = Loader()
    async with deploying(loader) as deployer:
        deployer.want(registered(1))
        await deployer.settled()
        deployer.want(registered(2, champion=15))
        settled = asyncio.create_task(deployer.settled())
        await aeventually(lambda: deployer.pending)
        assert deployer.pending["flight-delays"].state is State.VIEWS_BUILDING
        assert dict(deployer.table.entries) == {"flight-delays": 1}
        assert not settled.done()
        loader.built = True
        await settled
        assert dict(deployer.table.entries) == {"flight-delays": 15}
        # Loaded once, however often its views were looked at.
        assert loader.loads == 2


async def test_a_version_that_waits_for_its_views_makes_way_for_a_newer_one() -> None:
    loader = Loader()
    async with deploying(loader) as deployer:
        deployer.want(registered(1))
        await deployer.settled()
        deployer.want(registered(2, champion=15))
        await aeventually(lambda: deployer.pending)
        deployer.want(registered(3, champion=2))
        await deployer.settled()
        assert dict(deployer.table.entries) == {"flight-delays": 2}


async def test_views_that_take_too_long_are_a_refusal_that_ends_with_them() -> None:
    loader = Loader()
    async with deploying(loader, views_wait_s=0.1) as deployer:
        deployer.want(registered(1))
        await deployer.settled()
        deployer.want(registered(2, champion=15))
        with pytest.raises(Retryable, match=r"revision 2 \(refused\): view plane"):
            await deployer.settled()
        assert dict(deployer.table.entries) == {"flight-delays": 1}
        loader.built = True
        await aeventually(lambda: not deployer.pending)
        assert dict(deployer.table.entries) == {"flight-delays": 15}


async def test_where_nothing_serves_yet_views_are_not_waited_for() -> None:
    async with deploying(Loader()) as deployer:
        deployer.want(registered(1, champion=15))
        await deployer.settled()
        assert dict(deployer.table.entries) == {"flight-delays": 15}


async def test_a_withdrawn_deployment_is_served_no_more() -> None:
    loader = Loader()
    async with deploying(loader) as deployer:
        state = registered(1)
        deployer.want(state)
        await deployer.settled()
        deployer.want(state.with_deployment(b"flight-delays", None))
        await deployer.settled()
        assert not deployer.table.entries
        assert not loader.remembered[-1].wanted()
        with pytest.raises(Poison) as caught:
            deployer.entry("flight-delays")
        assert caught.value.reason is Reason.NO_MODEL


@pytest.mark.parametrize("first", ["pipeline", "deployment"])
async def test_a_retired_pipeline_is_served_no_more_whichever_topic_says_so_first(first: str) -> None:
    loader = Loader()
    async with deploying(loader) as deployer:
        state = registered(1)
        deployer.want(state)
        await deployer.settled()
        ended = to_json(definition.DefinitionRecord(kind="pipeline", name="flight-delays", revision=2, retired=True))
        last = to_json(registry.DeploymentRecord(pipeline="flight-delays", revision=2, change="retired"))
        without = state.with_deployment(b"flight-delays", last)
        for one in (state.with_definition(ended) if first == "pipeline" else without, without.with_definition(ended)):
            deployer.want(one)
            await deployer.settled()
            assert not deployer.table.entries
        with pytest.raises(Poison) as caught:
            deployer.entry("flight-delays")
        assert caught.value.reason is Reason.UNKNOWN_PIPELINE
    # What was remembered before does not bring it back.
    told = Registered().with_definition(ended).with_deployment(b"flight-delays", last)
    assert not told.over(state).wanted()


async def test_what_is_still_being_read_or_loaded_is_asked_again_and_is_not_called_missing() -> None:
    loader = Loader()
    loader.gate = asyncio.Event()
    async with deploying(loader) as deployer:
        with pytest.raises(Retryable, match="still being read"):
            deployer.entry("flight-delays")
        deployer.want(registered(1, champion=14), whole=False)
        with pytest.raises(Retryable, match="is being loaded"):
            deployer.entry("flight-delays")
        with pytest.raises(Retryable, match="still being read"):
            deployer.entry("another")
        loader.gate.set()
        await aeventually(lambda: deployer.pending)
        with pytest.raises(Retryable, match="the store is away"):
            deployer.entry("flight-delays")
        deployer.want(registered(1, champion=13))
        await deployer.attempted()
        with pytest.raises(Poison) as caught:
            deployer.entry("another")
        assert caught.value.reason is Reason.UNKNOWN_PIPELINE


async def test_where_what_is_deployed_is_refused_and_nothing_serves_the_answer_says_so_and_why() -> None:
    loader = Loader()
    async with deploying(loader) as deployer:
        deployer.want(registered(4, champion=13))
        await deployer.attempted()
        with pytest.raises(Poison, match=r"\(revision 4\) cannot be served: the signature does not fit") as caught:
            deployer.entry("flight-delays")
        assert (caught.value.reason, caught.value.field) == (Reason.NO_MODEL, "pipeline")
        assert "tidemill retrain flight-delays" in caught.value.fix
        # The next deployment is not judged by the one before.
        loader.gate = asyncio.Event()
        deployer.want(registered(5, champion=2))
        with pytest.raises(Retryable, match="is being loaded"):
            deployer.entry("flight-delays")
        loader.gate.set()
        await deployer.settled()
        assert deployer.entry("flight-delays") == 2


async def test_only_the_newest_of_several_deployments_has_to_be_loaded() -> None:
    loader = Loader()
    async with deploying(loader) as deployer:
        for revision in (1, 2, 3):
            deployer.want(registered(revision, champion=14 if revision < 3 else 3))
        await deployer.settled()
        assert dict(deployer.table.entries) == {"flight-delays": 3}


def test_the_log_wins_over_the_last_good_state_in_what_it_mentions() -> None:
    old = registered(9, champion=9, name="kept", older=registered(5, champion=5))
    new = registered(2, champion=2)
    wanted = new.over(old).wanted()
    assert {name: one.deployment.revision for name, one in wanted.items()} == {"kept": 9, "flight-delays": 2}
    assert "kept" not in new.with_deployment(b"kept", None).over(old).wanted()


@pytest.mark.parametrize("value", [b"{", b"[]", b'{"pipeline": 3}', b"\xff", b'{"pipeline": "p"}'])
def test_a_record_that_is_no_deployment_is_poison(value: bytes) -> None:
    with pytest.raises(Poison):
        Registered().with_deployment(b"p", value)


class Shelf:
    """What the bundles were told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, set[str]]] = []

    def ensure(self, versions: Iterable[registry.DeployedVersion]) -> None:
        self.told.append(("ensure", {version.manifest_hash for version in versions}))

    def keep_only(self, hashes: Collection[str]) -> None:
        self.told.append(("keep only", set(hashes)))


async def test_the_last_good_state_survives_a_restart_and_damage_is_as_good_as_none(tmp_path: Path) -> None:
    shelf = Shelf()
    disk = LastGood(tmp_path, shelf)
    assert not disk.recall().wanted()
    await disk.remember(registered(4), registered(5, bundle="sha256:c"))
    assert LastGood(tmp_path, shelf).recall().wanted()["flight-delays"].deployment.revision == 4
    assert shelf.told == [("ensure", {"sha256:b"}), ("keep only", {"sha256:b", "sha256:c"})]
    (tmp_path / "last-good.json").write_bytes(b'{"format": 1, "defin')
    assert not LastGood(tmp_path, shelf).recall().wanted()


async def test_without_a_folder_nothing_is_remembered_and_only_what_is_needed_stays_in_memory() -> None:
    shelf = Shelf()
    await LastGood(None, shelf).remember(registered(4), registered(5, bundle="sha256:c"))
    assert shelf.told == [("keep only", {"sha256:b", "sha256:c"})]
    assert not LastGood(None, shelf).recall().wanted()


async def test_where_the_state_cannot_be_written_the_bundles_of_the_older_one_stay(tmp_path: Path) -> None:
    shelf = Shelf()
    (tmp_path / "last-good.json").mkdir()
    await LastGood(tmp_path, shelf).remember(registered(4), registered(4))
    assert [what for what, _ in shelf.told] == ["ensure"]
