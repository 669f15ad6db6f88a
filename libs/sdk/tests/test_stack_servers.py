"""The real stack: how fast, how many side by side, what survives which death."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from tidemill.cli.stack_commands import COMMANDS
from tidemill.stack import Stack
from tidemill.stack.spec import External, StackError
from tidemill.stack.state import READY, STOPPED, process_started
from tidemill_testkit.eventually import eventually
from typer import Typer
from typer.testing import CliRunner

pytestmark = pytest.mark.servers
SERVERS = {"kafka", "postgres", "redis"}
# Alone on its machine it takes three.
READY_SECONDS_MAX = 60.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of this module's own, since its tests break it."""
    stack = Stack("broken", tmp_path_factory.mktemp("broken"))
    try:
        stack.start(only="servers")
        yield stack
    finally:
        stack.remove()


def everything_under(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


def test_the_servers_are_ready_in_time(stack: Stack) -> None:
    state = stack.state
    assert state is not None
    assert state.status == READY
    assert {process.name for process in state.processes} == SERVERS
    assert state.seconds_to_ready is not None
    assert state.seconds_to_ready < READY_SECONDS_MAX


def test_starting_a_running_stack_changes_nothing(stack: Stack) -> None:
    before = stack.state
    assert stack.start(only="servers") == stack.endpoints
    assert stack.state == before
    with pytest.raises(StackError, match=r"its services are none, not serving\): stop it first with `tidemill down`"):
        stack.start(only="serving")


@pytest.mark.parametrize("server", sorted(SERVERS))
def test_a_killed_server_comes_back_by_itself(stack: Stack, server: str) -> None:
    killed = stack.kill(server, signal.SIGKILL)
    back = stack.wait_ready(server, other_than=killed)
    assert back.restarts >= 1


@pytest.mark.parametrize("server", sorted(SERVERS))
def test_a_server_stopped_on_purpose_stays_stopped(stack: Stack, server: str) -> None:
    stack.wait_ready(server)
    stack.stop_process(server)
    state = stack.state
    assert state is not None
    stopped = state.process(server)
    assert stopped is not None
    assert stopped.state == STOPPED
    with pytest.raises(StackError, match="does not run now"):
        stack.kill(server)
    stack.start_process(server)
    again = stack.wait_ready(server)
    assert again.restarts == stopped.restarts


async def test_records_survive_a_killed_broker(stack: Stack) -> None:
    stack.wait_ready("kafka")
    bootstrap = stack.endpoints.kafka
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic("survivors", 1, 1)])
    await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True) as producer:
        for n in range(100):
            await producer.send_and_wait("survivors", str(n).encode())
    killed = stack.kill("kafka")
    await asyncio.to_thread(stack.wait_ready, "kafka", other_than=killed)
    async with AIOKafkaConsumer("survivors", bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        seen = [int((await consumer.getone()).value or b"") for _ in range(100)]
    assert seen == list(range(100))


def test_two_stacks_run_side_by_side(stack: Stack, tmp_path: Path) -> None:
    other = Stack("other", tmp_path / "other")
    try:
        endpoints = other.start(only="servers")
        assert not {endpoints.kafka, endpoints.redis} & {stack.endpoints.kafka, stack.endpoints.redis}
        assert other.state is not None
        door = Path(other.state.control)
        assert door.exists()
        other.stop()
        assert not other.running
        assert not door.exists()
        assert stack.running
    finally:
        other.remove()


@pytest.mark.parametrize("folder", ["a b's c", ' "d"=e:f\\g é[1]*$HOME'])
def test_a_stack_starts_and_starts_again_in_a_folder_of_any_name(tmp_path: Path, folder: str) -> None:
    stack = Stack("odd", tmp_path / folder)
    try:
        for _ in range(2):
            stack.start(only="servers")
            assert stack.state is not None
            assert {process.name for process in stack.state.processes} == SERVERS
            stack.stop()
        for written in ("kafka/log/meta.properties", "redis/appendonly.aof"):
            assert (tmp_path / folder / written).exists()
    finally:
        stack.remove()


def test_a_folder_that_kafka_would_take_for_two_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"Kafka takes no folder with a comma in its path: .*/a, b/kafka"):
        Stack("odd", tmp_path / "a, b").start(only="servers")


def test_an_existing_server_is_used_and_not_started(stack: Stack, tmp_path: Path) -> None:
    theirs = stack.endpoints
    external = External(kafka=theirs.kafka, redis=theirs.redis, postgres=theirs.postgres_dsn)
    guest = Stack("guest", tmp_path / "guest", external=external, topic_prefix="guest.")
    try:
        assert guest.start(only="servers").kafka == theirs.kafka
        assert guest.state is not None
        assert guest.state.processes == ()
        with pytest.raises(StackError, match="kafka is not run by this stack"):
            guest.stop_process("kafka")
    finally:
        guest.remove()


def test_a_start_beside_the_end_of_a_supervisor_starts_another(stack: Stack, tmp_path: Path) -> None:
    theirs = stack.endpoints
    external = External(kafka=theirs.kafka, redis=theirs.redis, postgres=theirs.postgres_dsn)
    guest = Stack("guest", tmp_path / "guest", external=external, topic_prefix="ending.")
    try:
        guest.start(only="servers")
        assert guest.state is not None
        killed = guest.state.supervisor_pid
        # One that is killed is still there for a moment; halted before, it is for half a second.
        os.kill(killed, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (killed, signal.SIGKILL)).start()
        guest.start(only="servers")
        told = guest.state.supervisor_pid
        assert told != killed
        assert guest.running
        os.kill(told, signal.SIGTERM)
        guest.start(only="servers")
        assert guest.state.supervisor_pid not in {killed, told}
        assert guest.running
    finally:
        guest.remove()


def test_nothing_is_left_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    stack = Stack("doomed", tmp_path / "doomed")
    try:
        stack.start(only="servers")
        assert stack.state is not None
        processes = everything_under(stack.state.supervisor_pid)
        assert len(processes) > len(SERVERS) + 1, "PostgreSQL's own children are counted too"
        os.kill(stack.state.supervisor_pid, signal.SIGKILL)
        eventually(lambda: gone(processes))
        again = Stack("doomed", tmp_path / "doomed")
        assert again.start(only="servers") == again.endpoints
        assert again.state is not None
        processes = everything_under(again.state.supervisor_pid)
        os.kill(again.state.supervisor_pid, signal.SIGKILL)
        eventually(lambda: gone(processes))
        door = Path(again.state.control)
        assert door.exists()
        again.remove()
        assert not door.exists()
    finally:
        stack.remove()


def test_a_stack_whose_supervisor_was_just_killed_is_removed(tmp_path: Path) -> None:
    home = tmp_path / "doomed"
    stack = Stack("doomed", home)
    stack.start(only="servers")
    assert stack.state is not None
    processes = everything_under(stack.state.supervisor_pid)
    os.kill(stack.state.supervisor_pid, signal.SIGKILL)
    stack.remove()
    assert gone(processes)
    assert not home.exists()


def test_an_attached_stack_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    home = tmp_path / "attached"
    code = (
        "import os, sys; from pathlib import Path; from tidemill.stack import Stack\n"
        "Stack('attached', Path(sys.argv[1])).start(only='servers'); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(home)], check=False, timeout=120)
    stack = Stack("attached", home)
    try:
        eventually(lambda: not stack.running)
        state = stack.state
        assert state is not None
        assert state.status == STOPPED
    finally:
        stack.remove()


def test_of_two_starts_at_once_one_joins_the_other(tmp_path: Path) -> None:
    stacks = [Stack("twice", tmp_path / "twice") for _ in range(2)]
    try:
        with ThreadPoolExecutor(2) as threads:
            first, second = threads.map(lambda stack: stack.start(only="servers", attached=False), stacks)
        assert first == second
    finally:
        stacks[0].remove()


def test_a_service_that_cannot_start_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    # A Python that cannot find its library dies at once, whatever the service does.
    stack = Stack("refused", tmp_path / "refused", service_environment={"PYTHONHOME": "/nowhere"})
    try:
        with pytest.raises(StackError, match=r"(?s)does not start; its last lines:.*No module named 'encodings'"):
            stack.start(only="ingestion")
        assert not stack.running
    finally:
        stack.remove()


def test_the_command_line_starts_shows_and_stops(tmp_path: Path) -> None:
    app = Typer()
    for command in COMMANDS:
        app.command()(command)
    run = CliRunner()
    where = ["--name", "typed", "--home", str(tmp_path / "typed")]
    try:
        assert run.invoke(app, ["status", *where]).exit_code == 3
        up = run.invoke(app, ["up", *where, "--only", "servers", "--json"])
        assert up.exit_code == 0, up.output
        assert json.loads(up.output)["status"] == READY
        status = run.invoke(app, ["status", *where, "--json"])
        assert status.exit_code == 0, status.output
        assert all(process["answers"] for process in json.loads(status.output)["processes"])
        # The folder alone says which stack it holds.
        shown = run.invoke(app, ["status", "--home", where[-1]])
        assert "stack 'typed': ready" in shown.output
        assert ":***@" in shown.output
        secret = Stack("typed", tmp_path / "typed").endpoints.redis.split(":")[2].split("@")[0]
        assert secret not in shown.output + up.output + status.output
        doctor = json.loads(run.invoke(app, ["doctor", *where, "--json"]).output)
        found = {finding["name"]: finding["ok"] for finding in doctor["findings"]}
        assert found["kafka"] is found["redis"] is found["postgres"] is True
        assert run.invoke(app, ["logs", "supervisor", *where]).exit_code == 0
        down = run.invoke(app, ["down", "--stack", *where[1:], "--wipe", "--json"])
        assert json.loads(down.output) == {"name": "typed", "stopped": True, "wiped": True}
        assert not (tmp_path / "typed").exists()
    finally:
        Stack("typed", tmp_path / "typed").remove()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["up", "--only", "cooking"], 2), (["logs", "cooking"], 2), (["logs", "kafka"], 3), (["down"], 0)],
)
def test_every_refusal_has_its_exit_code(arguments: list[str], code: int, tmp_path: Path) -> None:
    app = Typer()
    for command in COMMANDS:
        app.command()(command)
    done = CliRunner().invoke(app, [*arguments, "--home", str(tmp_path / "none"), "--json"])
    assert done.exit_code == code
    assert ("error" in json.loads(done.output)) == (code != 0)


def test_a_dead_process_has_no_start_time(stack: Stack) -> None:
    stack.wait_ready("redis")
    killed = stack.kill("redis")
    eventually(lambda: process_started(killed) is None)
