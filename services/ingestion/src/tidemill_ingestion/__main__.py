"""`python -m tidemill_ingestion`."""

from tidemill_runtime.lifecycle import main

from tidemill_ingestion.app import open_service
from tidemill_ingestion.settings import Settings

if __name__ == "__main__":
    main(open_service, Settings)
