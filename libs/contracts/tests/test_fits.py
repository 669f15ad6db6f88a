"""What a version reads against what a definition offers."""

import pytest
from tidemill_contracts.fits import Shape, misfit

NEEDS = Shape({"plane.delay": False, "carrier": True}, {"plane": "sha256:a"})


@pytest.mark.parametrize(
    ("columns", "views", "why"),
    [
        (NEEDS.columns, NEEDS.views, None),
        ({**NEEDS.columns, "new": False}, {**NEEDS.views, "other": "sha256:b"}, None),
        ({"carrier": True}, NEEDS.views, "needs the number 'plane.delay', which is not declared"),
        ({**NEEDS.columns, "plane.delay": True}, NEEDS.views, "needs the number 'plane.delay', which is not declared"),
        ({**NEEDS.columns, "carrier": False}, NEEDS.views, "needs the category 'carrier', which is not declared"),
        (NEEDS.columns, {"plane": "sha256:b"}, "was trained on another definition of view 'plane'"),
        (NEEDS.columns, {}, "reads view 'plane', which is not declared"),
    ],
)
def test_a_version_fits_what_offers_its_columns_by_the_same_views(
    columns: dict[str, bool], views: dict[str, str], why: str | None
) -> None:
    assert misfit(NEEDS, Shape(columns, views)) == why
