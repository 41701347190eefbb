# SPDX-License-Identifier: Apache-2.0
"""Names of links, at the one place that packs them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netback.errors import ConfigError
from netback.net.link_names import link_name_fault, pack_link_name, show_link_name, unpack_link_name

from .namespace import ip, new_network


@given(st.text(max_size=20))
def test_a_name_is_packed_whole_or_refused(name: str) -> None:
    fault = link_name_fault(name)
    if fault is not None:
        assert fault.isascii()
        assert fault.isprintable()
        with pytest.raises(ConfigError, match=re.escape(fault)):
            pack_link_name(name)
        return
    packed = pack_link_name(name)
    assert len(packed) == 16
    assert unpack_link_name(packed) == name


@pytest.mark.parametrize("name", ["vif1.0", "fifteen-letters", "-", "...", "a@b", "+'\""])
def test_what_is_packed_the_kernel_takes(name: str) -> None:
    pack_link_name(name)
    with new_network():
        ip(f"link add link0 type veth peer name {name}")


@given(st.binary(min_size=1, max_size=15).filter(lambda name: b"\0" not in name))
def test_any_name_that_the_kernel_has_can_be_shown(name: bytes) -> None:
    shown = show_link_name(unpack_link_name(name.ljust(16, b"\0")))
    assert shown.isascii()
    assert shown.isprintable()
