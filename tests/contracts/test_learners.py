"""What `check` knows of learners is what training takes."""

import pytest
from tidemill.definition.learners import LEARNERS
from tidemill_models.learners import boosted, online


@pytest.mark.parametrize(("library", "parameters"), [("xgboost", boosted._PARAMETERS), ("river", online._PARAMETERS)])
def test_the_parameters_that_check_knows_are_those_that_training_takes(
    library: str, parameters: dict[str, type]
) -> None:
    whole = {name for name, kind in parameters.items() if kind is int}
    assert (whole, set(parameters)) == (set(LEARNERS[library].whole), set(LEARNERS[library].parameters))
