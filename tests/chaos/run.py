"""Lives seeded runs, one after another, on one Kafka; stops at the first that ends wrong and says how to repeat it."""

import argparse
import asyncio
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from arena import Arena
from schedule import FAULTS, schedule

FIRST_SEED, RUNS = 1, 200
# After so many runs that ended wrong there is enough to look at.
FAILURES = 3


async def run(seeds: Sequence[int], home: Path, *, only: str, verbose: bool) -> list[int]:
    """Live the seeds, until a few have ended wrong; return those that did."""
    began, wrong, lived = time.monotonic(), [], 0
    async with Arena(home) as arena:
        for number, seed in enumerate(seeds, 1):
            since, plan = time.monotonic(), schedule(seed, only)
            if verbose:
                print(plan, *plan.acts, sep="\n  ", flush=True)
            lived, outcome = lived + 1, "right"
            try:
                await arena.live(seed, only)
            except Exception as error:
                wrong.append(seed)
                outcome = f"WRONG: {error!r}\n  repeat it with: make chaos SEED={seed}" + f" FAULT={only}" * bool(only)
            took, faults = time.monotonic() - since, ", ".join(plan.faults)
            print(f"{number:>4}/{len(seeds)}  seed {seed:<5} {took:5.1f} s  {faults}: {outcome}", flush=True)
            if len(wrong) == FAILURES:
                break
    took, faults = time.monotonic() - began, ", ".join(f"{n} × {name}" for name, n in arena.faults.most_common())
    print(f"{lived - len(wrong)} of {lived} runs ended right in {took:.0f} s ({took / lived:.1f} s each): {faults}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help="how many seeds to live")
    parser.add_argument("--first", type=int, default=FIRST_SEED, help="the first of them")
    parser.add_argument("--seed", type=int, help="live this one only")
    parser.add_argument("--fault", default="", choices=["", *FAULTS], help="nothing but this fault")
    parser.add_argument("--verbose", action="store_true", help="print each schedule")
    options = parser.parse_args()
    # That Kafka is away is what the client would tell at length.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    seeds = range(options.first, options.first + options.runs) if options.seed is None else [options.seed]
    home = Path(tempfile.mkdtemp(prefix="tm-chaos-"))
    wrong = asyncio.run(run(seeds, home, only=options.fault, verbose=options.verbose))
    if wrong:
        sys.exit(f"seeds {', '.join(map(str, wrong))} ended wrong; what their workers wrote lies in {home}")
    shutil.rmtree(home)


if __name__ == "__main__":
    main()
