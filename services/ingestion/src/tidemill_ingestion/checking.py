"""What would become of events now, asked before dead letters are sent again; nothing is written; pure."""

import json
from collections.abc import Iterable

from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.reasons import Reason

from tidemill_ingestion.explanation import Explainer
from tidemill_ingestion.verdicts import Refusal, Valid


def check_events(
    stream: definition.Stream, events: Iterable[messages.Event], now_us: int, *, ignore_unknown_fields: bool
) -> list[messages.Verdict]:
    """Return accepted or refused for each event; `now_us` is the wall clock.

    With `ignore_unknown_fields` as readers of the stream judge a record that a producer wrote straight into Kafka.
    """
    explainer = Explainer(stream)
    known = {field.name for field in stream.fields}
    verdicts = []
    for event in events:
        found = explainer.check(event.data, now_us)
        if ignore_unknown_fields and isinstance(found, Refusal) and found.reason is Reason.UNKNOWN_FIELD:
            declared = {name: value for name, value in json.loads(event.data).items() if name in known}
            # No longer than it came: its size was right.
            text = json.dumps(declared, ensure_ascii=False, separators=(",", ":"))
            found = explainer.check(text.encode(), now_us)
        verdicts.append(_verdict(found))
    return verdicts


def _verdict(found: Valid | Refusal) -> messages.Verdict:
    if isinstance(found, Valid):
        return messages.Verdict(outcome=messages.OUTCOME_ACCEPTED)
    return messages.Verdict(
        outcome=messages.OUTCOME_REFUSED, reason=found.reason, field=found.field, message=found.message
    )
