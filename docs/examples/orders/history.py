"""Make up two weeks of orders, up to now, as two NDJSON files: a shop is slow for a while, then fast again."""

import json
import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

DAYS, PER_HOUR = 14, 20
SHOPS = {"bistro": 28, "noodles": 34, "pizza": 38, "sushi": 31}

chance = random.Random(1)
now = datetime.now(UTC).replace(microsecond=0)
first = now - timedelta(days=DAYS)
placed, delivered = [], []
for number in range(DAYS * 24 * PER_HOUR):
    at = first + timedelta(seconds=number * 3600 / PER_HOUR)
    shop = chance.choice(list(SHOPS))
    # Each shop has its own rhythm of good and bad hours.
    trouble = math.sin(number / PER_HOUR / 3 + SHOPS[shop])
    minutes = round(max(10.0, chance.gauss(SHOPS[shop] + 12 * trouble, 6)), 1)
    order = {"order_id": f"o{int(at.timestamp())}", "shop": shop}
    placed.append({**order, "amount": round(chance.uniform(8, 60), 2), "placed_at": at.isoformat()})
    there = at + timedelta(minutes=minutes)
    if there <= now:
        delivered.append({**order, "minutes": minutes, "delivered_at": there.isoformat()})

delivered.sort(key=lambda event: event["delivered_at"])
for name, events in (("placed", placed), ("delivered", delivered)):
    Path(f"{name}.ndjson").write_text("".join(json.dumps(event) + "\n" for event in events))
    print(f"{name}.ndjson: {len(events)} events")
