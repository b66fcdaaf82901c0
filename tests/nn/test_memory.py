"""The memory plan: buffers that live at the same time never share bytes."""

import hypothesis.strategies as st
from hypothesis import given

from graftwork.nn.memory import ALIGNMENT, Buffer, arrange, lower_bound

buffers = st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 20), st.integers(0, 6)), max_size=25)


@given(buffers)
def test_no_two_live_buffers_overlap(entries):
    made = [Buffer(size, first, first + length) for size, first, length in entries]
    total = arrange(made)
    for i, a in enumerate(made):
        assert a.offset % ALIGNMENT == 0 and a.offset + a.nbytes <= total
        for b in made[:i]:
            if a.meets(b):
                assert a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset
    bound, with_workspace = lower_bound(made, [None] * 30)
    assert bound == with_workspace <= total


def test_a_chain_needs_two_buffers():
    chain = [Buffer(640, i, i + 1) for i in range(10)]
    assert arrange(chain) == 1280 == lower_bound(chain, [None] * 11)[0]


def test_workspaces_count_in_the_second_bound():
    assert lower_bound([Buffer(64, 0, 1)], [Buffer(128, 0, 0), None]) == (64, 192)


def test_nothing_needs_nothing():
    assert arrange([]) == 0 and lower_bound([], []) == (0, 0)
