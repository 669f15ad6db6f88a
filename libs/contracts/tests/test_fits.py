"""What a version reads against what a definition offers."""

import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.fits import Shape, misfit, sources_of

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


def test_a_version_does_not_fit_where_a_source_is_made_in_another_way_under_the_same_name() -> None:
    lookup = definition.ViewLookup(view="airport_delays", on=["origin", "carrier"])
    sources = [
        definition.FeatureSource(name="airport", view=lookup),
        definition.FeatureSource(name="late", expression="hour > 17"),
    ]
    trained = Shape({}, {}, sources_of(definition.Pipeline(features=sources)))
    assert trained.sources == {"airport": "view airport_delays by origin, carrier", "late": "hour > 17"}
    assert misfit(trained, trained) is None
    lookup.on[0] = "dest"
    sources[1].expression = "hour > 1" + "8" * 200
    by_dest = sources_of(definition.Pipeline(features=[definition.FeatureSource(name="airport", view=lookup)]))
    assert misfit(trained, Shape({}, {}, {**trained.sources, **by_dest})) == (
        "was trained with 'airport' as 'view airport_delays by origin, carrier', "
        "which is 'view airport_delays by dest, carrier' now"
    )
    later = sources_of(definition.Pipeline(features=sources[1:]))
    assert misfit(trained._replace(sources={"late": "hour > 17"}), Shape({}, {}, later)) == (
        f"was trained with 'late' as 'hour > 17', which is 'hour > 1{'8' * 112}…' now"
    )
    assert misfit(trained, Shape({}, {}, by_dest | {"airport": trained.sources["airport"]})) == (
        "needs 'late', which is not declared"
    )


def test_what_a_version_of_an_earlier_release_was_made_of_is_not_known_and_not_held_against_it() -> None:
    assert misfit(NEEDS, NEEDS._replace(sources={"late": "hour > 17"})) is None
    assert misfit(NEEDS._replace(sources={"late": "hour > 17"}), NEEDS) is None
