"""Lets the tests of this folder import what lies beside them, and lends them the secured servers."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tidemill_testkit.plugin import Servers

sys.path.append(str(Path(__file__).parent))

from secured_servers import Secured, opened_servers


@pytest.fixture(scope="session")
def secured(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """The servers, with TLS and a password at every door."""
    with opened_servers(servers, tmp_path_factory.mktemp("secured")) as opened:
        yield opened
