"""Runs the feature service."""

import os

from tidemill_runtime.lifecycle import main

from tidemill_feature.app import open_service
from tidemill_feature.settings import Settings

if __name__ == "__main__":
    # Arrow, which the offline role loads later, keeps to itself what it freed: a fifth of the memory.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    main(open_service, Settings)
