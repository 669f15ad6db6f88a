"""The offline log, read for one run: up to the run's positions."""

from tidemill_features.log_reader import Inputs, read_inputs
from tidemill_features.log_table import PlacedTables

from tidemill_training.spec import RunSpec


def read_run(spec: RunSpec) -> Inputs:
    """Read what the run's rows, features and labels rest on. Raises what pyiceberg raises."""
    limits = {(place.topic, place.partition): place.next_offset for place in spec.request.positions}
    return read_inputs(PlacedTables(spec.tables), spec.record.definition, spec.window, limits)
