"""One attempt, inside its process: read the offline log, train, seal and publish a bundle, answer what to register."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import tidemill_contracts
import tidemill_features
import tidemill_models
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from tidemill_contracts.fits import Shape, sources_of
from tidemill_contracts.instants import format_us, from_timestamp, to_timestamp
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_contracts.registry.v1 import registry_pb2 as registry
from tidemill_features.expressions import ExpressionError
from tidemill_features.log_reader import Inputs
from tidemill_features.plan import PlanError
from tidemill_features.training_set import TrainingSet, TrainingSetError
from tidemill_models.bundle import MANIFEST, open_bundle, seal
from tidemill_models.errors import ModelError
from tidemill_models.keys import load_private_key
from tidemill_models.learners.interface import LIBRARIES, load_library
from tidemill_models.manifest import Manifest, manifest_hash
from tidemill_models.scorer import load_scorer
from tidemill_models.store import bundle_path, open_store

import tidemill_training
from tidemill_training.adapters.archive import read_run
from tidemill_training.dataset import table_of
from tidemill_training.experiment import Champion, Plan, Result, run_experiment
from tidemill_training.lineage import code_hash, environment
from tidemill_training.spec import Done, Failed, Line, Progress, RunSpec, to_line

Emit = Callable[[Line], None]


def preload(library: str) -> None:
    """Load a learner's library while the spec is on its way; an unknown one is the attempt's to report."""
    if library in LIBRARIES:
        load_library(library)


def answer(raw: bytes, write: Callable[[bytes], object]) -> None:
    """Make one attempt of the run that `raw` tells of, and write lines: how far it is, and at last the answer."""

    def emit(line: Line) -> None:
        write(to_line(line))

    emit(attempt(RunSpec.from_json(raw), emit))


def attempt(spec: RunSpec, emit: Emit) -> Done | Failed:
    """Return the answer; what no other attempt would change is `Failed`, anything else is raised."""
    began = perf_counter()
    try:
        emit(Progress("dataset", 0.0))
        inputs = read_run(spec)
        read_s = perf_counter() - began
        rows = TrainingSet(spec.record.definition, inputs.logs, inputs.predicted, spec.window)
        table = table_of(rows)
        built_s = perf_counter() - began
        champion = _champion(spec)
        result = run_experiment(table, _plan(spec), champion, lambda phase, share: emit(Progress(phase, share)))
        emit(Progress("register", 0.95))
        version = _publish(spec, result, inputs)
    except (ModelError, PlanError, ExpressionError, TrainingSetError) as error:
        return Failed(str(error))
    seconds = {"read": read_s, "dataset": built_s - read_s, "all": perf_counter() - began}
    return Done(version, _details(spec, result, seconds))


def _plan(spec: RunSpec) -> Plan:
    pipeline = spec.pipeline
    return Plan(
        views=spec.views,
        sources=sources_of(pipeline),
        learner=pipeline.learner,
        gates=list(pipeline.gates),
        trials=max(1, pipeline.train.trials),
        min_rows=pipeline.train.min_rows,
        holdout=spec.holdout,
        seed=spec.seed,
        flip_labels=spec.flip_labels,
    )


def _champion(spec: RunSpec) -> Champion | None:
    if spec.champion is None:
        return None
    key = load_private_key(Path(spec.places.signing_key_file)).public_key()
    folder = open_store(spec.places.artifacts).folder(spec.champion.bundle)
    bundle = open_bundle(folder, key, spec.champion.manifest_hash)
    columns = {column.name: column.category for column in bundle.encoding.columns}
    shape = Shape(columns, bundle.manifest.views, bundle.manifest.sources)
    return Champion(spec.champion.version, shape, bundle.encoding, load_scorer(bundle))


def _publish(spec: RunSpec, result: Result, inputs: Inputs) -> registry.RegisterVersionRequest:
    """Seal and publish the bundle, and return what the registry is told of it."""
    features = [records.FeatureColumn(name=column.name, category=column.category) for column in result.encoding.columns]
    manifest = Manifest(
        pipeline=spec.pipeline.name,
        run_id=spec.run_id,
        definition_hash=spec.record.hash,
        constructor=result.constructor,
        scorer=result.export.scorer,
        model_file=result.export.model_file,
        features=tuple(features),
        views=spec.views,
        sources=sources_of(spec.pipeline),
        lineage=_lineage(spec, result, inputs),
        metrics=result.metrics,
        files={},
        parity=result.export.parity,
        # Event time: the same run makes the same bytes whenever it is made.
        created_at=format_us(from_timestamp(spec.request.event_time)),
    )
    sealed = seal(manifest, result.encoding, result.export.files, load_private_key(Path(spec.places.signing_key_file)))
    path = bundle_path(spec.pipeline.name, sealed)
    open_store(spec.places.artifacts).publish(path, sealed)
    return registry.RegisterVersionRequest(
        pipeline=manifest.pipeline,
        run_id=spec.run_id,
        bundle=path,
        manifest_hash=manifest_hash(sealed[MANIFEST]),
        metrics=dict(result.metrics),
        gates=[records.GateResult(gate=gate.gate, passed=gate.passed, reason=gate.reason) for gate in result.gates],
        features=features,
        lineage=manifest.lineage,
        views=dict(manifest.views),
        sources=dict(manifest.sources),
        reference=ParseDict(dict(result.reference), Struct()),
        event_time=spec.request.event_time,
        cause_id=spec.request.request_id,
    )


def _lineage(spec: RunSpec, result: Result, inputs: Inputs) -> records.Lineage:
    packages = (tidemill_contracts, tidemill_features, tidemill_models, tidemill_training)
    return records.Lineage(
        definition_hash=spec.record.hash,
        snapshots=inputs.snapshots,
        offsets=spec.request.positions,
        **{"from": to_timestamp(int(result.trained.as_of_us[0]))},
        to=to_timestamp(int(result.evaluated.as_of_us[0])),
        rows=len(result.trained),
        seed=spec.seed,
        environment=environment(),
        code_hash=code_hash(Path(package.__path__[0]) for package in packages),
    )


def _details(spec: RunSpec, result: Result, seconds: dict[str, float]) -> dict[str, Any]:
    return {
        "training_rows": len(result.trained),
        "evaluation_rows": len(result.evaluated),
        "parameters": dict(result.constructor.parameters),
        "trial_log_losses": [loss if np.isfinite(loss) else None for loss in result.trial_losses],
        "champion_version": spec.champion.version if spec.champion is not None else None,
        "champion_metrics": None if result.champion_metrics is None else dict(result.champion_metrics),
        "gates": [{"gate": gate.gate, "passed": gate.passed, "reason": gate.reason} for gate in result.gates],
        "parity": result.export.parity,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
