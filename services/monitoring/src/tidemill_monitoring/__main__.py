"""Runs monitoring: `python -m tidemill_monitoring`."""

from tidemill_runtime.lifecycle import main

from tidemill_monitoring.app import open_service
from tidemill_monitoring.settings import Settings

if __name__ == "__main__":
    main(open_service, Settings)
