"""NBD addresses: both ways, and what is no address."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu.errors import UsageError
from crucible_emu.nbd.uri import NbdUri, parse


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("nbd://example.com:10810/disk", NbdUri("disk", host="example.com", port=10810)),
        ("nbd://example.com/", NbdUri("", host="example.com")),
        ("nbd://example.com", NbdUri("", host="example.com")),
        ("nbd://example.com//disk", NbdUri("/disk", host="example.com")),
        ("nbd://example.com/hello%20world", NbdUri("hello world", host="example.com")),
        ("nbd://[::1]:10809/a", NbdUri("a", host="::1")),
        ("nbd://[fe80::1%25eth0]/a", NbdUri("a", host="fe80::1%eth0")),
        (
            "nbds://example.com/a?tls-hostname=b",
            NbdUri("a", host="example.com", tls=True, parameters=(("tls-hostname", "b"),)),
        ),
        ("nbds://alice@example.com/a", NbdUri("a", host="example.com", tls=True, user="alice")),
        ("nbd+unix:///a/b?socket=/run/x.sock", NbdUri("a/b", socket="/run/x.sock")),
        ("nbds+unix:///?socket=x+y%3Fz", NbdUri("", socket="x+y?z", tls=True)),
        ("nbd+unix:///?socket=/x&x-note=1", NbdUri("", socket="/x", parameters=(("x-note", "1"),))),
    ],
)
def test_addresses_that_are_right(text: str, uri: NbdUri) -> None:
    assert parse(text) == uri
    assert parse(str(uri)) == uri


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("http://example.com/", "nbd://host"),
        ("disk.img", "nbd://host"),
        ("nbd:///disk", "names no host"),
        ("nbd://host:70000/", "not an NBD address"),
        ("nbd://host:ten/", "not an NBD address"),
        ("nbd://[::1/", "not an NBD address"),
        ("nbd+unix:///disk", "names 0 sockets"),
        ("nbd+unix:///disk?socket=a&socket=b", "names 2 sockets"),
        ("nbd+unix://host/disk?socket=a", "has a host"),
        ("nbd+unix:///disk?socket=", "0 bytes long"),
        ("nbd://host/?socket=a", "use nbd+unix"),
        ("nbd://host/?colour=blue", "'colour'"),
        ("nbd://host/disk#1", "%23"),
        ("nbd://host/%00", "zero byte"),
        ("nbd+unix:///?socket=" + "s" * 108, "1 to 107"),
    ],
)
def test_addresses_that_are_wrong_get_one_clear_sentence(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert says in str(caught.value)


names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
hosts = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,20}[A-Za-z0-9])?", fullmatch=True) | st.ip_addresses().map(str)
parameters = st.lists(st.tuples(st.sampled_from(["tls-type", "tls-hostname", "x-a"]), names), max_size=3).map(tuple)
uris = st.builds(
    NbdUri,
    names,
    host=hosts,
    port=st.integers(0, 65535),
    tls=st.booleans(),
    user=st.none() | names,
    parameters=parameters,
) | st.builds(
    NbdUri,
    names,
    socket=names.filter(bool).filter(lambda n: len(n.encode()) < 108),
    tls=st.booleans(),
    parameters=parameters,
)


@given(uri=uris)
def test_every_address_survives_being_written_down(uri: NbdUri) -> None:
    assert parse(str(uri)) == uri
