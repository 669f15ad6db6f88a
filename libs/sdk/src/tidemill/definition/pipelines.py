"""Pipelines: request, features, label and what a version is trained on."""

from collections.abc import Mapping

from tidemill_contracts.bounds import MAX_COLUMNS, MAX_ROWS, MAX_SEED, MAX_TRIALS
from tidemill_contracts.canonical import mentioned_in
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.expressions import TYPE_NAMES
from tidemill_features.vector import features_of

from tidemill.declarations.origin import Origin
from tidemill.declarations.pipelines import Label, Pipeline, Train
from tidemill.declarations.unsupported import Unsupported
from tidemill.declarations.views import Lookup, View
from tidemill.definition.decisions import compile_gates, compile_monitors, compile_retrain, compile_rollout
from tidemill.definition.learners import compile_learner
from tidemill.definition.report import Report, named
from tidemill.definition.source import line_of_text
from tidemill.definition.streams import CompiledStream, Streams
from tidemill.definition.views import CompiledView, Views

_TIMESTAMP = definition.FIELD_TYPE_TIMESTAMP
_STRING = definition.FIELD_TYPE_STRING


class Pipelines:
    """Compiles pipelines over the views and streams that they name."""

    def __init__(self, report: Report, streams: Streams, views: Views) -> None:
        self._report = report
        self._streams = streams
        self._views = views
        self._declared: dict[str, Pipeline] = {}

    def compile(self, pipeline: Pipeline) -> definition.Pipeline | None:
        """Return the pipeline's message, or None with the faults reported."""
        subject = named("pipeline", pipeline.name)
        return self._report.guarded(pipeline.origin, subject, lambda: self._compile(pipeline, subject))

    def _compile(self, pipeline: Pipeline, subject: str) -> definition.Pipeline | None:
        report, origin = self._report, pipeline.origin
        before = len(report.problems)
        if report.name(origin, subject, pipeline.name):
            other = self._declared.setdefault(pipeline.name, pipeline)
            if other is not pipeline:
                report.add(origin, subject, f"it is declared at line {other.origin.line} already; rename one")
        request = self._streams.get(pipeline.request, origin, f"{subject}: request")
        message = definition.Pipeline(name=str(pipeline.name))
        categories: set[str] = set()
        if request is not None:
            message.request = request.message.name
            message.features.extend(self._features(pipeline, request, subject, categories))
        label = self._label(pipeline, request, f"{subject}: label")
        if label is not None:
            message.label.CopyFrom(label)
        learner = compile_learner(pipeline.learner, origin, f"{subject}: learner", report)
        if learner is not None:
            message.learner.CopyFrom(learner)
        self._train(pipeline.train, origin, message, f"{subject}: train")
        # A feature that has a fault may be the category that a gate names.
        known = isinstance(pipeline.features, Mapping) and len(message.features) == len(pipeline.features)
        message.gates.extend(compile_gates(pipeline, categories if known else None, report))
        message.rollout.extend(compile_rollout(pipeline, report))
        message.monitors.extend(compile_monitors(pipeline, report))
        retrain = compile_retrain(pipeline, report)
        if retrain is not None:
            message.retrain.CopyFrom(retrain)
        return message if len(report.problems) == before else None

    def _features(
        self, pipeline: Pipeline, request: CompiledStream, subject: str, categories: set[str]
    ) -> list[definition.FeatureSource]:
        """Return the pipeline's features; the names of its categories are added to `categories`."""
        report, origin = self._report, pipeline.origin
        if not isinstance(pipeline.features, Mapping) or not pipeline.features:
            report.add(origin, subject, "features takes a dictionary of views (view.on(…)) and expressions")
            return []
        found = []
        columns = 0
        looked_up = {
            name: self._views.get(item.view)
            for name, item in pipeline.features.items()
            if isinstance(item, Lookup) and isinstance(name, str)
        }
        for name, item in pipeline.features.items():
            report.feature_name(origin, subject, name)
            feature = f"{subject}: feature {name!r}"
            source: definition.FeatureSource | None = None
            if isinstance(item, Lookup):
                view = self._views.get(item.view)
                source = self._lookup(name, item, view, request, feature)
                if view is not None:
                    columns += len(view.plan.features)
                    categories.update(f"{name}.{one.name}" for one in view.plan.features if one.type == _STRING)
            elif isinstance(item, str):
                columns += 1
                source = self._transform(pipeline, name, item, request, looked_up, categories)
            elif isinstance(item, Unsupported):
                report.refuse(item, feature)
            else:
                hint = 'write view.on("…")' if isinstance(item, View) else "a view or an expression is wanted"
                report.add(origin, feature, f"{hint}, not {item!r:.80}", line=line_of_text(origin, name))
            found += [source] if source is not None else []
        if columns > MAX_COLUMNS:
            report.add(origin, subject, f"it has {columns} features; at most {MAX_COLUMNS} are possible")
        return found

    def _lookup(
        self, name: str, item: Lookup, view: CompiledView | None, request: CompiledStream, subject: str
    ) -> definition.FeatureSource | None:
        if view is None:
            return None
        report, before = self._report, len(self._report.problems)
        entity = view.message.entity
        if len(item.fields) != len(entity):
            message = f"view {view.message.name!r} is kept by ({', '.join(entity)}); on() takes one field for each"
            report.add(item.origin, subject, message)
            return None
        for field_name, wanted, key in zip(item.fields, view.entity_types, entity, strict=True):
            field = report.field(item.origin, subject, field_name, request.schema, request.owner)
            if field is not None and field.type != wanted:
                types = f"{TYPE_NAMES[field.type]}, but the view's {key!r} is {TYPE_NAMES[wanted]}"
                line = line_of_text(item.origin, field_name)
                report.add(item.origin, subject, f"{field_name!r} is {types}", line=line)
        for one in view.message.features:
            if one.type == _TIMESTAMP:
                message = f"{one.name!r} of view {view.message.name!r} is a timestamp, which no model takes"
                report.add(item.origin, subject, f"{message}; use parts of it, such as hour(…)")
        if len(report.problems) > before:
            return None
        return definition.FeatureSource(
            name=str(name), view=definition.ViewLookup(view=view.message.name, on=item.fields)
        )

    def _transform(
        self,
        pipeline: Pipeline,
        name: str,
        text: str,
        request: CompiledStream,
        looked_up: Mapping[str, CompiledView | None],
        categories: set[str],
    ) -> definition.FeatureSource | None:
        subject = f"{named('pipeline', pipeline.name)}: feature {name!r}"
        if any(view is None and mentioned_in([text])(source) for source, view in looked_up.items()):
            # What is wrong with the view is said already; what it would offer is not known.
            return None
        views = {source: features_of(view.plan) for source, view in looked_up.items() if view is not None}
        found = self._report.expression(pipeline.origin, subject, text, request.schema, request.owner, views=views)
        if found is None:
            return None
        if found.type == _TIMESTAMP:
            message = "a timestamp is no feature; use parts of it, such as hour(…) or dow(…)"
            self._report.add(pipeline.origin, subject, message, line=line_of_text(pipeline.origin, text))
            return None
        if found.type == _STRING:
            categories.add(name)
        return definition.FeatureSource(name=str(name), expression=found.canonical)

    def _label(self, pipeline: Pipeline, request: CompiledStream | None, subject: str) -> definition.Label | None:
        label, report = pipeline.label, self._report
        if not isinstance(label, Label):
            report.add(pipeline.origin, subject, f"tm.Label(…) is wanted, not {label!r:.80}")
            return None
        before = len(report.problems)
        stream = self._streams.get(label.source, label.origin, subject)
        wait = report.duration(label.origin, f"{subject}: wait", label.wait)
        if stream is None:
            return None
        expression = report.expression(label.origin, subject, label.expression, stream.schema, stream.owner)
        if expression is not None and expression.type != definition.FIELD_TYPE_BOOL:
            message = f"a label of type {TYPE_NAMES[expression.type]} (regression, multi-class) is not in this release"
            report.add(
                label.origin,
                subject,
                f"{message}; write a condition, such as x > 15",
                line=line_of_text(label.origin, label.expression),
            )
        if label.absent is not None and not isinstance(label.absent, bool):
            message = f"absent is True or False, what a request without an event counts as, not {label.absent!r:.80}"
            report.add(label.origin, subject, message)
        if request is not None:
            self._check_join(label, stream, request, subject)
        if len(report.problems) > before or expression is None:
            return None
        return definition.Label(
            stream=stream.message.name,
            expression=expression.canonical,
            by=label.by,
            wait_ms=wait or 0,
            absent=label.absent,
        )

    def _check_join(self, label: Label, stream: CompiledStream, request: CompiledStream, subject: str) -> None:
        report = self._report
        if stream.message.name == request.message.name:
            message = "it comes from the request's own stream, so it would be known when asking"
            report.add(label.origin, subject, f"{message}; name the stream that tells the outcome")
            return
        for side in (request, stream):
            field = report.field(label.origin, f"{subject}: by", label.by, side.schema, side.owner)
            if field is not None and (field.type != _STRING or field.nullable):
                message = f"{label.by!r} of {side.owner} must be str and never null, to join by it"
                report.add(label.origin, f"{subject}: by", message, line=line_of_text(label.origin, label.by))

    def _train(self, train: object, origin: Origin, message: definition.Pipeline, subject: str) -> None:
        report = self._report
        if not isinstance(train, Train):
            report.add(origin, subject, f"tm.Train(…) is wanted, not {train!r:.80}")
            return
        origin = train.origin
        window = report.duration(origin, f"{subject}: window", train.window)
        rows = report.number(origin, f"{subject}: min_rows", train.min_rows, low=1, high=MAX_ROWS, whole=True)
        trials = report.number(origin, f"{subject}: trials", train.trials, low=1, high=MAX_TRIALS, whole=True)
        seed = report.number(origin, f"{subject}: seed", train.seed, low=0, high=MAX_SEED, whole=True)
        if window is not None and rows and trials and seed:
            settings = definition.Train(window_ms=window, min_rows=train.min_rows, trials=train.trials, seed=train.seed)
            message.train.CopyFrom(settings)
        label = message.label
        if window is not None and label.HasField("absent") and window <= label.wait_ms:
            text = "is no longer than the label's wait, so that no row has waited for its label; make it longer"
            report.add(origin, f"{subject}: window", f"{train.window} {text}", line=line_of_text(origin, train.window))
