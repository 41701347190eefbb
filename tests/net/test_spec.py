# SPDX-License-Identifier: Apache-2.0
"""Spec strings, and each possible mistake."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netback.errors import ConfigError
from netback.net.packet import PacketNetwork
from netback.net.rtnetlink import get_link
from netback.net.spec import KINDS, PeerSpec, open_network, parse_spec, remove_earlier
from netback.net.tap import TapNetwork

from .namespace import ip, new_network, veth


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("tap", PeerSpec("tap")),
        ("tap:vif1.0", PeerSpec("tap", "vif1.0")),
        ("tap:fifteen-letters", PeerSpec("tap", "fifteen-letters")),
        ("packet:eth1", PeerSpec("packet", "eth1")),
        ("packet:eth1.5", PeerSpec("packet", "eth1.5")),
        ("vhost-user:/run/p.sock", PeerSpec("vhost-user", "/run/p.sock")),
        ("vhost-user:/run/p:1.sock,server", PeerSpec("vhost-user", "/run/p:1.sock", (("server", None),))),
        ("tap,mtu=9000", PeerSpec("tap", "", (("mtu", "9000"),))),
        ("tap:vif1.0,mtu=68", PeerSpec("tap", "vif1.0", (("mtu", "68"),))),
        ("stream:/run/q.sock,server", PeerSpec("stream", "/run/q.sock", (("server", None),))),
        ("stream:127.0.0.1:5000", PeerSpec("stream", "127.0.0.1:5000")),
        ("stream:[fe80::1%eth0]:65535", PeerSpec("stream", "[fe80::1%eth0]:65535")),
        ("stream:fd:3", PeerSpec("stream", "fd:3")),
        ("null", PeerSpec("null")),
        ("bridge:xenbr0,mtu=9000", PeerSpec("bridge", "xenbr0", (("mtu", "9000"),))),
    ],
)
def test_good_ones(text: str, spec: PeerSpec) -> None:
    assert parse_spec(text) == spec
    assert str(spec) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it names no kind"),
        (":eth1", "it names no kind"),
        ("bond:br0", "unknown kind 'bond'"),
        ("bridge", "it names no bridge: write for example 'bridge:xenbr0'"),
        ("bridge:a/b", "has the character '/'"),
        ("bridge:br0,bridge=br1", r"bridge has no option 'bridge' \(options: mtu, vhost\)"),
        ("Tap", "unknown kind 'Tap'"),
        (" tap", "unknown kind ' tap'"),
        ("vif1.0", "unknown kind 'vif1.0'"),
        ("tap:", "it names no link: write for example 'tap:vif1.0'"),
        ("packet", "it names no link: write for example 'packet:eth1'"),
        ("packet:", "it names no link"),
        ("null:eth1", "null takes no link: write 'null'"),
        ("null:", "null takes no link"),
        ("tap:sixteen-letters-", "is longer than 15 characters"),
        ("packet:a/b", "has the character '/'"),
        ("packet:a:b", "has the character ':'"),
        ("tap:vif 1", "has the character ' '"),
        ("tap:vif%d", "has the character '%'"),
        ("tap:vif\n", r"has the character '\\n'"),
        ("tap:vif\0", r"has the character '\\x00'"),
        ("tap:brücke", "has the character '\\\\xfc'"),
        ("packet:.", "'.' cannot be the name of a link"),
        ("packet:..", "'..' cannot be the name of a link"),
        ("vhost-user", "it names no socket: write for example 'vhost-user:/run/passt.sock'"),
        ("vhost-user:", "it names no socket"),
        ("vhost-user:p.sock", "the socket's path 'p.sock' does not begin with /"),
        ("vhost-user:,server", "it names no socket"),
        ("vhost-user:/p,client", r"vhost-user has no option 'client' \(options: server\)"),
        ("vhost-user:/p,", "vhost-user has no option ''"),
        ("vhost-user:/p,server,server", "option server is given twice"),
        ("vhost-user:/p,server=yes", "option server takes no value"),
        ("vhost-user:/p,server=", "option server takes no value"),
        ("null,mtu=1500", r"null has no option 'mtu' \(it takes none\)"),
        ("packet:eth1,", r"packet has no option '' \(options: ring\)"),
        ("packet:eth1,ring=-1", "ring='-1' is not a number from 0 to 16384"),
        ("tap:web0,mtu", "option mtu needs a value: a number from 68 to 65521"),
        ("tap:web0,mtu=", "option mtu needs a value: a number from 68 to 65521"),
        ("tap:web0,mtu=67", "mtu='67' is not a number from 68 to 65521"),
        ("tap:web0,mtu=65522", "mtu='65522' is not a number from 68 to 65521"),
        ("tap:web0,mtu=0x5dc", "mtu='0x5dc' is not a number"),
        ("tap:web0,mtu=01500", "mtu='01500' is not a number"),
        ("tap:web0,mtu=-1", "mtu='-1' is not a number"),
        ("tap:web0,mtu=1500 ", "mtu='1500 ' is not a number"),
        ("tap:web0,mtu=" + 5000 * "9", "is not a number"),
        ("tap:web0,mtu=\u0661\u0662\u0663\u0664", "is not a number"),
        ("tap:web0,bridge", "option bridge needs a value: the name of a bridge"),
        (
            "tap:web0,bridge=a/b",
            "bridge='a/b' is not the name of a bridge: link name 'a/b' has the character '/'",
        ),
        ("tap:web0,MTU=1500", "tap has no option 'MTU'"),
        ("tap:web0,mtu=1500,mtu=1500", "option mtu is given twice"),
        ("tap:web0, mtu=1500", "tap has no option ' mtu'"),
        ("tap:web0,m\ntu=1500", r"tap has no option 'm\\ntu'"),
        ("stream", "it names no socket: write for example 'stream:/run/qemu.sock'"),
        ("stream:", "it names no socket"),
        ("stream:q.sock", "'q.sock' is neither a path that begins with /, nor ADDRESS:PORT, nor fd:NUMBER"),
        ("stream:5000", "'5000' is neither a path"),
        ("stream:/" + 107 * "p", "is longer than 107 bytes"),
        ("stream:localhost:5000", "'localhost' is not an IPv4 address in numbers"),
        ("stream:127.0.0.1:0", "is not ADDRESS:PORT or .ADDRESS.:PORT, with a port from 1 to 65535"),
        ("stream:127.0.0.1:65536", "65536 is not a port: they end at 65535"),
        ("stream:127.0.0.1:", "is not ADDRESS:PORT"),
        ("stream:127.0.0.1:5000:6000", "is not ADDRESS:PORT"),
        ("stream:127.1:5000", "'127.1' is not an IPv4 address"),
        ("stream:::1:5000", "is not ADDRESS:PORT"),
        ("stream:[::g]:5000", "'::g' is not an IPv6 address"),
        ("stream:[127.0.0.1]:5000", "'127.0.0.1' is not an IPv6 address"),
        ("stream:fd:", "'fd:' is not fd:NUMBER"),
        ("stream:fd:-1", "'fd:-1' is not fd:NUMBER"),
        ("stream:fd:03", "'fd:03' is not fd:NUMBER"),
        ("stream:/q,client", r"stream has no option 'client' \(options: server\)"),
        ("vhost-user:/p\n", "has a character that is not printable"),
        ("vhost-user:/" + 107 * "p", "is longer than 107 bytes"),
    ],
)
def test_bad_ones(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_spec(text)
    assert repr(text) in str(caught.value)
    assert str(caught.value).isprintable()
    assert ("kind" in words) == (f"(kinds: {', '.join(KINDS)})" in str(caught.value))


options = st.tuples(st.sampled_from(("mtu", "server", "")) | st.text(max_size=3), st.text(max_size=5)).map(
    "=".join
)


@given(
    st.text(max_size=24)
    | st.sampled_from(list(KINDS)).flatmap(lambda k: st.text(max_size=18).map((k + ":").__add__))
    | st.builds(
        lambda kind, more: ",".join((kind, *more)),
        st.sampled_from(("tap", "tap:web0", "vhost-user:/p", "null")),
        st.lists(options | st.sampled_from(("mtu=1500", "server", "")), max_size=3),
    )
)
def test_any_text_is_read_or_refused(text: str) -> None:
    """A parsed spec is written the same; a refusal is one line."""
    try:
        read = str(parse_spec(text))
    except ConfigError as error:
        read = text if str(error).isprintable() else str(error)
    assert read == text


def test_opening() -> None:
    with new_network():
        veth("eth1", "far1")
        ip("link add br0 type bridge")
        for text, name, kind in (
            ("tap", "vif3.1", TapNetwork),
            ("tap:own0", "own0", TapNetwork),
            ("tap,mtu=9000", "vif3.1", TapNetwork),
            ("packet:eth1", "eth1", PacketNetwork),
            ("bridge:br0", "vif3.1", TapNetwork),
            ("bridge:br0,mtu=9000", "vif3.1", TapNetwork),
        ):
            network = open_network(parse_spec(text), name="vif3.1")
            assert (network.bridge is not None) == text.startswith("bridge")
            assert isinstance(network, kind)
            assert network.name == name
            assert network.mtu == (9000 if "9000" in text else 1500)
            network.remove()
    assert open_network(parse_spec("null"), name="vif3.1").name == "null"


def test_networks_for_several_queues() -> None:
    """Only a tap has a descriptor for each queue."""
    with new_network():
        veth("eth1", "far1")
        for text, peers in (("tap", 3), ("packet:eth1", 1), ("null", 1)):
            network = open_network(parse_spec(text), name="vif3.1", several=True)
            network.set_queues(3)
            assert len(network.peers) == peers
            network.remove()


def test_a_tap_that_an_earlier_process_made_is_removed() -> None:
    with new_network():
        ip("link add br0 type bridge")
        for text, made in (("tap", "vif3.1"), ("tap:own0", "own0"), ("bridge:br0", "vif3.1")):
            open_network(parse_spec(text), name="vif3.1").close()
            assert get_link(made) is not None
            remove_earlier(parse_spec(text), "vif3.1")
            assert get_link(made) is None
        remove_earlier(parse_spec("packet:br0"), "br0")
        assert get_link("br0") is not None


def test_packet_without_permission() -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match="packet:eth1: packet sockets need CAP_NET_RAW"):
            open_network(parse_spec("packet:eth1"), name="vif1.0")
    finally:
        os.seteuid(0)
