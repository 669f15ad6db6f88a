"""Puts together what serves a pipeline, and refuses what does not fit together."""

from collections.abc import Mapping
from typing import NamedTuple

from tidemill_contracts.fits import Shape, misfit, sources_of
from tidemill_contracts.reasons import Reason
from tidemill_contracts.serving.v1 import records_pb2 as records
from tidemill_features.expressions import ExpressionError
from tidemill_features.plan import PlanError
from tidemill_features.reader import Reader
from tidemill_features.vector import compile_vector
from tidemill_models.bundle import Bundle
from tidemill_models.scorer import Scorer
from tidemill_runtime.errors import Poison

from tidemill_serving.desired import Wanted
from tidemill_serving.request import RequestSchema
from tidemill_serving.routing import scorers_of, split_of
from tidemill_serving.served import Served, Version


class Loaded(NamedTuple):
    """A verified bundle and its warm scorer."""

    bundle: Bundle
    scorer: Scorer


class Rings(NamedTuple):
    """Whose rings are read: the feature service's project and worker group."""

    project: str
    group: str


def assemble(wanted: Wanted, loaded: Mapping[str, Loaded], rings: Rings) -> Served:
    """Return what serves a pipeline; `loaded` holds the bundle of every version by its manifest hash.

    A baseline that was not trained for these features is left out, since it answers nobody. Raises `Poison` where
    another version was not, or the definition cannot be computed here.
    """
    catalogue = wanted.catalogue
    try:
        pipeline = catalogue.pipelines[wanted.name]
        vector = compile_vector(pipeline, catalogue.views, catalogue.streams)
        views = {name: catalogue.view_hash(name) for name in catalogue.views}
    except (KeyError, PlanError, ExpressionError) as error:
        raise Poison(Reason.UNSUPPORTED, f"definition of {wanted.name}: {error}") from error
    offered = Shape(dict(zip(vector.names, vector.category, strict=True)), views, sources_of(pipeline))
    versions: list[Version] = []
    left_out: list[str] = []
    for deployed, role in scorers_of(wanted.deployment):
        bundle, scorer = loaded[deployed.manifest_hash]
        if why := misfit(_needs(bundle), offered):
            sentence = f"version {deployed.version} {why}"
            if role != records.ROLE_BASELINE:
                raise Poison(Reason.CONFLICT, sentence)
            left_out.append(sentence)
            continue
        shared = next((one.encoding for one in versions if one.encoding == bundle.encoding), bundle.encoding)
        versions.append(Version(deployed.version, deployed.manifest_hash, role, shared, scorer))
    return Served(
        pipeline=wanted.name,
        definition_hash=wanted.definition.hash,
        revision=wanted.deployment.revision,
        schema=RequestSchema(catalogue.streams[pipeline.request], pipeline.label.by),
        vector=vector,
        reader=Reader(vector.plans, project=rings.project, group=rings.group),
        split=split_of(wanted.deployment),
        versions=tuple(versions),
        left_out=tuple(left_out),
    )


def _needs(bundle: Bundle) -> Shape:
    columns = {column.name: column.category for column in bundle.encoding.columns}
    return Shape(columns, bundle.manifest.views, bundle.manifest.sources)
