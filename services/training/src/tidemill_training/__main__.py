"""Runs the training service."""

from tidemill_runtime.lifecycle import main

from tidemill_training.app import open_service
from tidemill_training.settings import TrainingSettings

if __name__ == "__main__":
    main(open_service, TrainingSettings)
