"""How far a build is, told over all its partitions until the last one is done."""

from tidemill.clients.builds import Progress
from tidemill_contracts.feature.v1 import feature_pb2 as feature


def part(number: int, upto: int, end: int) -> feature.BuildProgress:
    return feature.BuildProgress(
        topic="events.paid", partition=number, first_offset=100, next_offset=upto, end_offset=end
    )


def test_a_partition_that_is_done_keeps_its_share() -> None:
    progress = Progress()
    assert progress.note([]) == (0, 0)
    assert progress.note([part(0, 150, 200), part(1, 300, 500)]) == (250, 500)
    assert progress.note([part(1, 400, 520)]) == (400, 520)
    assert progress.note([]) == (520, 520)


def test_a_partition_that_is_begun_anew_is_no_longer_done() -> None:
    progress = Progress()
    progress.note([part(0, 150, 200)])
    progress.note([])
    assert progress.note([part(0, 110, 300)]) == (10, 200)
