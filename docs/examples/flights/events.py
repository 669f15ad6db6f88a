"""Write the first days of 2013's flights from New York, and the weather there, as NDJSON: python events.py [DAYS]."""

import json
import sys
from collections import defaultdict
from pathlib import Path

from tidemill.demo.flights import DAY_US, Year, data_folder

days = int(sys.argv[1]) if len(sys.argv) > 1 else 14
year = Year(data_folder(), days)
lines = defaultdict(list)
for event in year.until(year.first_us + days * DAY_US):
    lines[event.stream].append(json.dumps(event.fields) + "\n")
for stream, events in sorted(lines.items()):
    Path(f"{stream}.ndjson").write_text("".join(events))
    print(f"{stream}.ndjson: {len(events)} events")
