"""What a stream of events holds without a verdict, what it sends again, and when it gives up."""

import grpc
import pytest
from tidemill.clients.calls import CallError
from tidemill.clients.publishing import ATTEMPTS, MESSAGE_EVENTS, Flight
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as ingestion

ACCEPTED = ingestion.Verdict(outcome=ingestion.OUTCOME_ACCEPTED, offset=1)
RETRY = ingestion.Verdict(outcome=ingestion.OUTCOME_RETRY, reason="paused", message="wait")


def sent(flight: Flight, count: int) -> list[ingestion.PublishStreamRequest]:
    return list(flight.requests(flight.number([ingestion.Event(data=b"{}") for _ in range(count)])))


def answer(*verdicts: ingestion.Verdict) -> ingestion.PublishStreamResponse:
    return ingestion.PublishStreamResponse(verdicts=verdicts)


def test_every_event_has_an_id_and_is_told_once_by_its_number() -> None:
    told: list[int] = []
    flight = Flight("rides", "meter", lambda number, _verdict: told.append(number), max_events=400)
    requests = sent(flight, MESSAGE_EVENTS + 150)
    assert [len(request.events) for request in requests] == [MESSAGE_EVENTS, 150]
    assert len({event.id for request in requests for event in request.events}) == MESSAGE_EVENTS + 150
    assert not flight.full
    sent(flight, 1)
    assert flight.full
    assert flight.take(answer(*[ACCEPTED] * 401)) == []
    assert (told, list(flight.waiting), flight.full) == (list(range(401)), [], False)


def test_what_is_to_be_sent_again_keeps_its_number_and_id_and_goes_behind() -> None:
    told: list[int] = []
    flight = Flight("rides", "meter", lambda number, _verdict: told.append(number))
    sent(flight, 3)
    again = flight.take(answer(ACCEPTED, RETRY))
    assert [one.number for one in again] == [1]
    (request,) = flight.requests(again)
    assert request.events[0].id == again[0].event.id
    assert flight.take(answer(ACCEPTED, ACCEPTED)) == []
    assert told == [0, 2, 1]


def test_a_broken_call_leaves_everything_without_a_verdict_in_order() -> None:
    flight = Flight("rides", "meter", lambda _number, _verdict: None, max_bytes=10)
    sent(flight, 6)
    flight.take(answer(ACCEPTED))
    assert [one.number for one in flight.broken()] == [1, 2, 3, 4, 5]
    assert not flight.full


def test_it_gives_up_after_fruitless_attempts_and_at_once_where_the_answer_is_no() -> None:
    flight = Flight("rides", "meter", lambda _number, _verdict: None)
    away = CallError("ingestion", grpc.StatusCode.UNAVAILABLE, "not there")
    for _ in range(ATTEMPTS - 1):
        flight.failed(away)
    sent(flight, 2)
    flight.take(answer(ACCEPTED))
    flight.failed(away)
    assert flight.pause_s == 0.1, "a verdict begins the count anew"
    for _ in range(ATTEMPTS - 2):
        list(flight.requests(flight.take(answer(RETRY))))
    with pytest.raises(CallError, match="wait") as caught:
        flight.take(answer(RETRY))
    assert (caught.value.reason, caught.value.reached) == ("paused", True)
    with pytest.raises(CallError):
        Flight("rides", "", lambda *_: None).failed(CallError("ingestion", grpc.StatusCode.UNIMPLEMENTED, "no"))
