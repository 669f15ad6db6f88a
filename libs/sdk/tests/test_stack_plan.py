"""What the stack would run, decided without running it."""

import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tidemill.kafka_login import LoginError, login
from tidemill.stack import kafka, ports, postgres, redis
from tidemill.stack.endpoints import Endpoints, ServiceAddress, redacted
from tidemill.stack.plan import NEEDS, Layout, kafka_security, port_names, service_environment
from tidemill.stack.restart import HEALTHY_AFTER_S, LONGEST_DELAY_S, Backoff
from tidemill.stack.servers import service_programs
from tidemill.stack.spec import SERVICES, External, StackError, StackSpec, default_home, services_of
from tidemill.stack.state import ProcessState, StackState

ENDPOINTS = Endpoints(
    kafka="127.0.0.1:1",
    redis="redis://:secret@127.0.0.1:2/0",
    postgres_dsn="postgresql://tidemill:secret@127.0.0.1:3/tidemill",
    topic_prefix="mine.",
    services={name: ServiceAddress(f"127.0.0.1:{n}0", f"127.0.0.1:{n}1") for n, name in enumerate(SERVICES, 4)},
)


def test_every_service_has_needs() -> None:
    assert set(NEEDS) == set(SERVICES)


def test_a_service_gets_only_the_servers_it_needs() -> None:
    environment = service_environment("ingestion", ENDPOINTS, Layout(Path("/home")))
    assert environment == {
        "TIDEMILL_INGESTION_GRPC__LISTEN": ENDPOINTS.services["ingestion"].grpc,
        "TIDEMILL_INGESTION_HTTP__LISTEN": ENDPOINTS.services["ingestion"].http,
        "TIDEMILL_INGESTION_KAFKA__BOOTSTRAP": "127.0.0.1:1",
        "TIDEMILL_INGESTION_KAFKA__TOPIC_PREFIX": "mine.",
        "TIDEMILL_INGESTION_KAFKA__INSTANCE": "local",
    }


def test_training_alone_gets_the_private_key() -> None:
    layout = Layout(Path("/home"))
    holders = [
        name for name in SERVICES if str(layout.signing_key) in service_environment(name, ENDPOINTS, layout).values()
    ]
    assert holders == ["training"]


def test_a_peer_that_does_not_run_is_left_out() -> None:
    alone = Endpoints(
        kafka="k:1",
        redis="redis://r",
        postgres_dsn="postgresql://p",
        services={"training": ServiceAddress("a:1", "a:2")},
    )
    assert "TIDEMILL_TRAINING_REGISTRY" not in service_environment("training", alone, Layout(Path("/home")))


def test_an_external_server_takes_no_port() -> None:
    names = port_names(("serving",), frozenset({"kafka"}))
    assert names == ("postgres", "redis", "serving-grpc", "serving-http")


def test_ports_are_kept_from_one_start_to_the_next() -> None:
    rng = random.Random(7)
    first = ports.choose(("a", "b"), {}, rng, ports.is_free)
    assert ports.choose(("b", "a"), first, rng, ports.is_free) == first


def test_a_port_that_someone_took_is_replaced() -> None:
    rng = random.Random(7)
    first = ports.choose(("a",), {}, rng, ports.is_free)
    with socket.create_server((ports.LOOPBACK, first["a"])):
        second = ports.choose(("a",), first, rng, ports.is_free)
    assert second["a"] != first["a"]


def test_chosen_ports_are_outside_the_ephemeral_range() -> None:
    chosen = ports.choose([str(n) for n in range(20)], {}, random.Random(1), ports.is_free)
    assert len(set(chosen.values())) == 20
    assert all(ports.FIRST <= port < ports.LAST < 32_768 for port in chosen.values())


CLAIMS = """
import pathlib, random, sys
from tidemill.stack.ports import Claims, choose
claims = Claims(pathlib.Path(sys.argv[1]))
print(*choose(map(str, range(20)), {}, random.Random(7), claims.take).values(), flush=True)
input()
"""


def test_stacks_that_start_at_one_time_take_no_ports_of_each_other(tmp_path: Path) -> None:
    def started() -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", CLAIMS, str(tmp_path / "ports.lock")]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def chosen(one: "subprocess.Popen[str]") -> set[int]:
        assert one.stdout is not None
        return set(map(int, one.stdout.readline().split()))

    first, second = started(), started()
    taken = [chosen(first), chosen(second)]
    assert not set.intersection(*taken), "by the same chance they would choose the same"
    for one in (first, second):
        one.communicate("\n", timeout=60)
    third = started()
    assert chosen(third) <= set.union(*taken), "who has ended keeps none"
    third.communicate("\n", timeout=60)


def test_the_delay_between_restarts_is_bounded_and_forgotten() -> None:
    backoff = Backoff()
    delays = []
    for _ in range(40):
        backoff = backoff.after_crash(uptime_s=0.5)
        delays.append(backoff.delay_s)
    assert delays == sorted(delays)
    assert delays[-1] == LONGEST_DELAY_S
    assert backoff.after_crash(uptime_s=HEALTHY_AFTER_S).delay_s == delays[0]


def test_the_spec_survives_its_file() -> None:
    spec = StackSpec(name="n", home=Path("/h"), services=("serving",), external=External(kafka="k:1"))
    assert StackSpec.from_json(spec.to_json()) == spec


def test_the_state_survives_its_file() -> None:
    state = StackState(
        name="n",
        status="ready",
        supervisor_pid=1,
        supervisor_started=2,
        control="/s",
        endpoints=ENDPOINTS,
        processes=(ProcessState(name="kafka", state="ready", pid=3),),
    )
    assert StackState.from_json(state.to_json()) == state


@pytest.mark.parametrize(("only", "expected"), [(None, SERVICES), ("all", SERVICES), ("servers", ())])
def test_only_names_what_runs(only: str | None, expected: tuple[str, ...]) -> None:
    assert services_of(only) == expected


def test_an_unknown_service_is_refused_by_name() -> None:
    with pytest.raises(StackError, match="no service named cooking; choose from servers, registry"):
        services_of("serving,cooking")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
def test_a_stack_name_cannot_leave_its_folder(name: str) -> None:
    with pytest.raises(StackError, match="cannot name a stack"):
        default_home(name)


def test_empty_environment_means_embedded_servers() -> None:
    assert External.from_environment({"TIDEMILL_KAFKA": ""}).given() == frozenset()
    assert External.from_environment({"TIDEMILL_REDIS": "redis://r"}).given() == frozenset({"redis"})


@pytest.mark.parametrize("sign", "#?")
def test_a_home_that_urls_cannot_name_is_refused_before_anything_is_written_beside_it(
    tmp_path: Path, sign: str
) -> None:
    home = tmp_path / f"a{sign}b"
    with pytest.raises(StackError, match=r"the offline log takes no folder with # or \? in its path: "):
        service_programs(StackSpec(name="n", home=home), Layout(home), ENDPOINTS)
    assert list(tmp_path.iterdir()) == []


def test_every_server_listens_on_loopback_alone() -> None:
    listeners = [line for line in kafka.properties(Path("/d"), 1, 2).splitlines() if "listeners=" in line]
    assert listeners
    assert all("://127.0.0.1:" in line for line in listeners)
    assert "bind 127.0.0.1\n" in redis.configuration(Path("/d"), 1, "p")
    assert "listen_addresses = '127.0.0.1'\n" in postgres.configuration(1)


def test_a_full_redis_is_an_error_and_topics_are_never_made_by_accident() -> None:
    assert "maxmemory-policy noeviction\n" in redis.configuration(Path("/d"), 1, "p")
    assert "auto.create.topics.enable=false\n" in kafka.properties(Path("/d"), 1, 2)


def test_passwords_are_not_shown() -> None:
    assert redacted(ENDPOINTS.redis) == "redis://:***@127.0.0.1:2/0"
    assert redacted("redis://127.0.0.1:2/0") == "redis://127.0.0.1:2/0"
    assert redacted("postgresql://u:a@b@h/d") == "postgresql://u:***@h/d"
    assert redacted("postgresql://h/d?user=u&password=secret") == "postgresql://h/d?user=u&password=***"


def test_the_services_talk_to_an_existing_kafka_as_the_command_line_does() -> None:
    given = {"TIDEMILL_KAFKA_SASL_USERNAME": "ada", "TIDEMILL_KAFKA_SSL_CAFILE": "", "HOME": "/"}
    assert kafka_security("feature", given) == {"TIDEMILL_FEATURE_KAFKA__SASL_USERNAME": "ada"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"SECURITY_PROTOCOL": "TLS"}, "SECURITY_PROTOCOL is one of PLAINTEXT, SSL"),
        ({"SECURITY_PROTOCOL": "SASL_SSL", "SASL_USERNAME": "ada"}, "needs TIDEMILL_KAFKA_SASL_USERNAME and"),
        ({"SECURITY_PROTOCOL": "SSL", "SSL_CAFILE": "/nowhere.pem"}, "/nowhere.pem: No such file or directory"),
    ],
)
def test_a_login_of_kafka_that_cannot_work_is_refused_by_name(given: dict[str, str], said: str) -> None:
    with pytest.raises(LoginError, match=said):
        login({f"TIDEMILL_KAFKA_{name}": value for name, value in given.items()})
