"""Runs the feature service."""

from tidemill_runtime.lifecycle import main

from tidemill_feature.app import open_service
from tidemill_feature.settings import Settings

if __name__ == "__main__":
    main(open_service, Settings)
