"""Letters as values."""

from tidemill.clients.letters import Letter, Newest


def letter(offset: int, *, written_us: int = 0, size: int = 1) -> Letter:
    return Letter(("events.rides.dlq", 0, offset), None, None, b"x" * size, (), written_us)


def offsets(newest: Newest) -> list[int]:
    return [one.place[2] for one in newest.letters]


def test_the_newest_are_those_written_last_whatever_the_order_they_come_in() -> None:
    newest = Newest(3, 1_000)
    for offset, written_us in enumerate([5, 9, 1, 7, 7]):
        newest.add(letter(offset, written_us=written_us))
    assert offsets(newest) == [3, 4, 1]


def test_letters_that_are_too_large_together_make_room_for_newer_ones_and_one_is_always_held() -> None:
    newest = Newest(10, 100)
    for offset in range(5):
        newest.add(letter(offset, written_us=offset, size=40))
    assert offsets(newest) == [3, 4]
    newest.add(letter(5, written_us=5, size=1_000))
    assert offsets(newest) == [5]
