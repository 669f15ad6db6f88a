"""A checkpoint that is written while identities are remembered again names all that are not yet."""

import numpy as np
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_feature.online import PartitionState
from tidemill_features.admission import Admission, Rules

RULES = Rules(dedup_window_us=30, lateness_us=0, policy=definition.LATE_POLICY_DROP)


def test_what_is_still_to_be_remembered_is_read_again_after_the_next_crash() -> None:
    admission = Admission(RULES, newest_us=100)
    place = PartitionState(bytes(16), None, applied=6, next_offset=6, admission=admission, views=frozenset(), read=2)
    # The first records lie before the window: nothing of them needs to be remembered, of those after them it does.
    for offsets, event_us, low in (([2, 3], [10, 20], 4), ([4], [90], 4), ([5], [100], 4)):
        admission.remember(offsets, np.array(event_us), [str(offset) for offset in offsets])
        place.read = offsets[-1] + 1
        point = place.checkpoint()
        assert point is not None
        assert (point.next_offset, point.dedup_low_offset) == (6, low)
