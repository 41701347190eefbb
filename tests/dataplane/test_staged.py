# SPDX-License-Identifier: Apache-2.0
"""The table of staged pages: it finds what is in it, for the uses that it is for. tests/oracle.py has its use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netback.abi.netif_control import MAX_GREFS
from netback.dataplane.staged import GREFS_END, MAX_PAGES, Staged

GREFS = st.one_of(st.integers(0, 2000), st.integers(0, GREFS_END - 1), st.integers(0, 2**32 - 1))
PAGE = 4096


@given(st.dictionaries(GREFS, st.booleans(), max_size=MAX_PAGES), st.lists(GREFS, max_size=20))
def test_it_finds_what_is_staged(grefs: dict[int, bool], others: list[int]) -> None:
    pages = {gref: (PAGE * number, writable) for number, (gref, writable) in enumerate(grefs.items(), 1)}
    table = Staged(pages)
    for gref, (address, writable) in pages.items():
        found = address if gref < GREFS_END else 0
        assert table.find(gref, writing=False) == found
        assert table.find(gref, writing=True) == (found if writable else 0)
    for gref in set(others) - set(pages):
        assert table.find(gref, writing=False) == 0


@pytest.mark.parametrize("step", [1, 2, 63, 64, 127])
def test_a_full_table(step: int) -> None:
    """As many as a queue may have, at any distance."""
    grefs = [number * step % GREFS_END for number in range(MAX_PAGES)]
    table = Staged({gref: (PAGE * (number + 1), True) for number, gref in enumerate(grefs)})
    assert [table.find(gref, writing=True) for gref in grefs] == [PAGE * (i + 1) for i in range(MAX_PAGES)]
    with pytest.raises(ValueError, match="at most 512"):
        Staged(dict.fromkeys(range(MAX_PAGES + 1), (PAGE, True)))


def test_a_list_has_as_many_entries_as_a_queue_has_pages() -> None:
    assert MAX_PAGES == MAX_GREFS


def test_a_page_without_an_address() -> None:
    with pytest.raises(ValueError, match="no address"):
        Staged({7: (0, True)})
