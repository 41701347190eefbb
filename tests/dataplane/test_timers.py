# SPDX-License-Identifier: Apache-2.0
"""The worker's queue of deadlines is a sorted list, whatever is set, set again and cancelled."""

from hypothesis import given
from hypothesis import strategies as st

from netback.dataplane.timers import TimerQueue

TIMERS = 20
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, TIMERS - 1), st.integers(1, 50)),
        st.tuples(st.just("cancel"), st.integers(0, TIMERS - 1), st.just(0)),
        st.tuples(st.just("pop"), st.just(0), st.integers(0, 60)),
    ),
    max_size=200,
)


@given(OPERATIONS)
def test_the_earliest_comes_first(operations: list[tuple[str, int, int]]) -> None:
    queue, model = TimerQueue(TIMERS), dict[int, int]()
    for name, number, time in operations:
        if name == "set":
            queue.set(number, time)
            model[number] = time
        elif name == "cancel":
            queue.cancel(number)
            model.pop(number, None)
        else:
            popped = queue.pop(time)
            due = [deadline for deadline in model.values() if deadline <= time]
            assert (popped is None) == (not due)
            if popped is not None:
                assert model.pop(popped) == min(due)
        assert queue.next == min(model.values(), default=0)
