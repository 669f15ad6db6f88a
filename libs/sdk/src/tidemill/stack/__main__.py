"""The supervisor's process: `python -m tidemill.stack HOME`, with what was asked for in HOME/spec.json."""

import argparse
import asyncio
import os
import random
import sys
from pathlib import Path

from tidemill.stack import control
from tidemill.stack.plan import Layout, port_names
from tidemill.stack.ports import Claims, choose
from tidemill.stack.servers import endpoints_of, passwords, server_programs, service_programs
from tidemill.stack.spec import StackError, StackSpec
from tidemill.stack.state import read_state
from tidemill.stack.supervisor import Prepared, Supervisor


def prepare(layout: Layout, door: Path) -> Prepared:
    """Do what needs no running server: passwords, ports, downloads, formats, keys."""
    spec = StackSpec.from_json(layout.spec_file.read_text())
    earlier = read_state(layout.state_file)
    secret = passwords(layout)
    claims = Claims(door.with_name("ports.lock"))
    names = port_names(spec.services, spec.external.given())
    ports = choose(names, {} if earlier is None else earlier.ports, random.SystemRandom(), claims.take)
    endpoints = endpoints_of(spec, ports, secret)
    servers = server_programs(spec, layout, ports, secret)
    services = service_programs(spec, layout, endpoints)
    return Prepared(
        spec=spec,
        layout=layout,
        ports=ports,
        endpoints=endpoints,
        tiers=(servers, services),
        control=str(door),
    )


async def supervise(prepared: Prepared, *, foreground: bool, lifeline: bool) -> int:
    return await Supervisor(prepared, foreground=foreground).run(lifeline=lifeline)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--foreground", action="store_true", help="print every process's output here too")
    parser.add_argument("--lifeline", action="store_true", help="stop when standard input ends")
    parser.add_argument("--lock", type=int, required=True, help="the claim on HOME, an open file, held until the end")
    arguments = parser.parse_args()
    os.set_inheritable(arguments.lock, False)
    layout = Layout(arguments.home)
    os.umask(0o077)
    layout.home.mkdir(parents=True, exist_ok=True)
    layout.home.chmod(0o711)  # root's PostgreSQL runs as another user, whose data lies in here
    try:
        door = control.socket_path(layout.home)
        control.remove_stale(door)
        prepared = prepare(layout, door)
    except StackError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    try:
        return asyncio.run(supervise(prepared, foreground=arguments.foreground, lifeline=arguments.lifeline))
    finally:
        # Closing a server leaves its socket's file.
        control.remove_stale(door)


if __name__ == "__main__":
    sys.exit(main())
