"""A handful of the seeded runs, on servers of their own; `make chaos` lives two hundred."""

import logging
from pathlib import Path

import pytest
from arena import Arena

pytestmark = pytest.mark.servers

# One of each kind of fault, chosen for being short.
SEEDS = {
    "kill": 51,
    "rebalance": 55,
    "zombie": 7,
    "redis": 70,
    "view": 65,
    "recreate": 59,
    "node": 55,
    "redrive": 51,
    "archive": 59,
}


async def test_after_any_fault_every_feature_equals_brute_force(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "aiokafka")
    # Not in the folder of the test: its name is too long for the path of a Unix socket.
    async with Arena(Path(tmp_path_factory.mktemp("c"))) as arena:
        for fault, seed in SEEDS.items():
            try:
                await arena.live(seed, fault)
            except Exception as error:
                error.add_note(f"repeat it with: make chaos SEED={seed} FAULT={fault}")
                raise
