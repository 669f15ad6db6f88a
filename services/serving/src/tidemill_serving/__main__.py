"""Runs the serving service."""

from tidemill_runtime.lifecycle import main

from tidemill_serving.app import open_service
from tidemill_serving.settings import ServingSettings

if __name__ == "__main__":
    main(open_service, ServingSettings)
