"""Prepare the embedded servers and the services: what must exist on disk before a process can start."""

import functools
import json
import os
import secrets
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from tidemill.stack import kafka, kafka_classes, postgres, redis, unprivileged, wheels
from tidemill.stack.endpoints import Endpoints, ServiceAddress
from tidemill.stack.health import http_ready
from tidemill.stack.keys import ensure_key_pair
from tidemill.stack.plan import Layout, kafka_security, service_environment
from tidemill.stack.ports import LOOPBACK
from tidemill.stack.programs import Program
from tidemill.stack.spec import StackError, StackSpec
from tidemill.stack.state import write_private

# Longer than a service's own deadline for draining (`drain_s`, 20 s), which it may use up.
SERVICE_STOP_DEADLINE_S = 30.0


def passwords(layout: Layout) -> dict[str, str]:
    """Return the servers' passwords, made once: loopback is open to every user of the machine.

    Raises: StackError when their file holds something else.
    """
    if not layout.secrets_file.exists():
        made = {name: secrets.token_hex(16) for name in ("postgres", "redis")}
        write_private(layout.secrets_file, json.dumps(made))
    try:
        found = json.loads(layout.secrets_file.read_text())
        return {name: found[name] for name in ("postgres", "redis")}
    except (ValueError, LookupError, TypeError) as error:
        raise StackError(
            f"{layout.secrets_file} does not hold the servers' passwords: put it back, or delete the stack with its "
            "data by `tidemill down --wipe`"
        ) from error


def endpoints_of(spec: StackSpec, ports: Mapping[str, int], secret: Mapping[str, str]) -> Endpoints:
    """Return every address of the stack, the existing servers' own where they were given."""
    return Endpoints(
        kafka=spec.external.kafka or f"{LOOPBACK}:{ports['kafka']}",
        redis=spec.external.redis or redis.url(ports["redis"], secret["redis"]),
        postgres_dsn=spec.external.postgres or postgres.dsn(ports["postgres"], secret["postgres"]),
        topic_prefix=spec.topic_prefix,
        services={
            name: ServiceAddress(grpc=f"{LOOPBACK}:{ports[f'{name}-grpc']}", http=f"{LOOPBACK}:{ports[f'{name}-http']}")
            for name in spec.services
        },
    )


def _kafka(layout: Layout, ports: Mapping[str, int]) -> Program:
    runtime = kafka_classes.installed()
    config = kafka.prepare(layout.data("kafka"), ports["kafka"], ports["kafka-controller"], runtime=runtime)
    return kafka.program(config, ports["kafka"], runtime=runtime)


def _postgres(layout: Layout, port: int, password: str) -> Program:
    user = unprivileged.account()
    install = unprivileged.usable_install(wheels.postgres_install(), user)
    data = unprivileged.data_folder(layout.home, user)
    postgres.prepare(data, port, password, install=install, user=user)
    return postgres.program(data, port, password, install=install, user=user)


def _redis(layout: Layout, port: int, password: str) -> Program:
    config = redis.prepare(layout.data("redis"), port, password)
    return redis.program(wheels.redis_server(), config, port, password)


def server_programs(
    spec: StackSpec, layout: Layout, ports: Mapping[str, int], secret: Mapping[str, str]
) -> tuple[Program, ...]:
    """Prepare the servers that are not given, side by side (each waits for its own tools); return their programs."""
    steps = {
        "kafka": lambda: _kafka(layout, ports),
        "postgres": lambda: _postgres(layout, ports["postgres"], secret["postgres"]),
        "redis": lambda: _redis(layout, ports["redis"], secret["redis"]),
    }
    wanted = [step for name, step in steps.items() if name not in spec.external.given()]
    with ThreadPoolExecutor(max_workers=len(steps)) as pool:
        return tuple(pool.map(lambda step: step(), wanted))


def service_programs(spec: StackSpec, layout: Layout, endpoints: Endpoints) -> tuple[Program, ...]:
    """Create the keys and folders the services share and return their programs.

    Raises: StackError when the home's path would end where a URL's does: Iceberg names its files by URL.
    """
    if spec.services and any(sign in str(layout.home) for sign in "#?"):
        raise StackError(f"the offline log takes no folder with # or ? in its path: {layout.home}; choose another")
    ensure_key_pair(layout.signing_key, layout.verify_key)
    for folder in (layout.artifacts, layout.warehouse, *(layout.data(name) for name in spec.services)):
        folder.mkdir(parents=True, exist_ok=True)
    return tuple(
        Program(
            name=name,
            command=(sys.executable, "-m", f"tidemill_{name}"),
            ready=functools.partial(http_ready, endpoints.services[name].http),
            environment={
                **(kafka_security(name, os.environ) if spec.external.kafka else {}),
                **spec.service_environment,
                **service_environment(name, endpoints, layout),
            },
            folder=layout.data(name),
            stop_deadline_s=SERVICE_STOP_DEADLINE_S,
        )
        for name in spec.services
    )
