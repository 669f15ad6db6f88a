"""`python -m tidemill_registry`."""

from tidemill_runtime.lifecycle import main

from tidemill_registry.app import open_service
from tidemill_registry.settings import Settings

if __name__ == "__main__":
    main(open_service, Settings)
