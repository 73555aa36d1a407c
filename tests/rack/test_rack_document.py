"""The rack file: what is accepted, what is refused and in which words, and that nothing is lost on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu.cli.sizes import parse_size
from crucible_emu.errors import UsageError
from crucible_emu.rack import plan
from crucible_emu.rack.document import RackFile, Sled, SledElsewhere, differences, parse, simple, to_toml
from crucible_emu.rack.ports import Pool
from crucible_emu.rack.state import RackState

WHOLE = """
disk_size = "8GiB"
address = "0:0::1"
low_port = 20000
ports_per_agent = 100
isolate = true
nexus = "http://[::1]:12221/"

[[sled]]
name = "left"
disks = 2
disk_size = "1TiB"
pantry = true

[[sled]]
disks = 0
host = false

[[sled]]
name = "far"
agents = ["https://[fd00::7]:17000", "https://far.example:17001"]
host = "https://[fd00::7]:12400"
"""


def test_whole_document() -> None:
    assert parse(WHOLE, parse_size) == RackFile(
        (
            Sled("left", 2, "1TiB", pantry=True),
            Sled("sled1", 0, host=False),
            SledElsewhere(
                "far", ("https://[fd00::7]:17000", "https://far.example:17001"), host="https://[fd00::7]:12400"
            ),
        ),
        disk_size="8GiB",
        low_port=20000,
        ports_per_agent=100,
        isolate=True,
        nexus="http://[::1]:12221",
    )


SLED = "[[sled]]\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("= 1", "this is not TOML: invalid statement (at line 1, column 1)"),
        ("", "it names no sled: write a table [[sled]] for each"),
        ("sled = 5", "it names no sled: write a table [[sled]] for each"),
        ("sled = []", "it names no sled: write a table [[sled]] for each"),
        (SLED * 65, "65 sleds are more than 64"),
        ('disk_size = "4 potatoes"\n' + SLED, "disk_size: '4 potatoes' is not a size: "),
        ("disk_size = 4\n" + SLED, "disk_size is 4: write a text in quotes"),
        ('disk_size = ""\n' + SLED, "disk_size is empty: leave it out or fill it in"),
        ('address = "localhost"\n' + SLED, "address is 'localhost': write an IP address, such as ::1"),
        ("low_port = 0\n" + SLED, "low_port is 0: take 1 to 65535"),
        ("low_port = true\n" + SLED, "low_port is True: write a number"),
        ("low_port = 65000\n" + SLED, "1 agents with 1000 ports each do not fit above port 65000"),
        ('isolate = "yes"\n' + SLED, "isolate is 'yes': write true or false"),
        ("sleds = 3\n" + SLED, "'sleds' is no setting: there are disk_size, address, low_port"),
        ('tls_cert = "a.pem"\n' + SLED, "TLS needs both files: give tls_cert and tls_key"),
        (SLED + "disk = 3", "sled 'sled0': 'disk' is no setting: there are name, agents, disks"),
        (SLED + "disks = 33", "sled 'sled0': disks is 33: take 0 to 32"),
        (SLED + 'name = "../x"', "sled 0: name is '../x': take lower-case letters"),
        (SLED + 'name = "a"\n' + SLED + 'name = "a"', "two sleds are named 'a': give each its own name"),
        (SLED + "pantry = 1", "sled 'sled0': pantry is 1: write true or false"),
        (SLED + 'agents = ["far"]', "sled 'sled0': agents is 'far': write a URL, such as http://[fd00::7]:17000"),
        (SLED + "agents = [7]", "sled 'sled0': agents is 7: write a URL"),
        (SLED + 'host = "http://[::1"', "sled 'sled0': host is 'http://[::1': write a URL"),
        (SLED + 'agents = []\npantry = true', "sled 'sled0': pantry is True: write a text in quotes"),
        (SLED + 'host = "http://far:1"\ndisks = 1', "disks are of this machine and URLs of another"),
        ((SLED + "disks = 32\n") * 5, "160 disks on one machine are more than 128"),
    ],
)  # fmt: skip
def test_refusals_name_the_setting(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(text, parse_size)
    assert sentence in str(refused.value)


names = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
urls = st.sampled_from(["http://[fd00::7]:17000", "https://far.example", "http://10.0.0.1:80"])
here = st.builds(Sled, names, st.integers(0, 4), st.none() | st.just("1GiB"), st.booleans(), st.booleans())
far = st.builds(SledElsewhere, names, st.lists(urls, max_size=3).map(tuple), st.none() | urls, st.none() | urls)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
racks = st.builds(
    RackFile,
    st.lists(here | far, min_size=1, max_size=4, unique_by=lambda sled: sled.name).map(tuple),
    disk_size=st.sampled_from(["4GiB", "512"]),
    address=st.sampled_from(["::1", "127.0.0.1"]),
    isolate=st.booleans(),
    nexus=st.none() | urls,
    token_file=st.none() | texts,
)


@given(racks)
def test_what_is_written_is_read_again(rack: RackFile) -> None:
    assert parse(to_toml(rack), parse_size) == rack


def test_a_simple_rack() -> None:
    rack = simple(3, disks_per_sled=2, pantries=1, disk_size="1GiB", isolate=True)
    assert [(sled.name, sled.disks, sled.pantry) for sled in rack.here] == [
        ("sled0", 2, True),
        ("sled1", 2, False),
        ("sled2", 2, False),
    ]
    given = {"--sleds": 3, "--disks-per-sled": 2, "--pantries": 1, "--disk-size": "1GiB", "--isolate": True}
    assert differences(given, rack) == []
    assert differences({**given, "--sleds": 4, "--disks-per-sled": 1}, rack) == ["--sleds", "--disks-per-sled"]
    for settings, words in (
        ({"sleds": 0, "pantries": 0}, "--sleds is 0: take 1 to 64"),
        ({"sleds": 2, "pantries": 3}, "3 pantries do not fit on 2 sleds"),
        ({"sleds": 64, "disks_per_sled": 32}, "2048 disks on one machine are more than 128"),
    ):
        with pytest.raises(UsageError, match=words):
            simple(**settings)  # type: ignore[arg-type]


def test_command_lines() -> None:
    rack, root = parse(WHOLE, parse_size), Path("/r")
    planned = plan.services(rack, root)
    assert [each.name for each in planned] == ["left-disk0", "left-disk1", "left-pantry", "left-host"]
    state = RackState(
        {each.name: 40000 + index for index, each in enumerate(planned)}, {"left-disk1": Pool(20100, 100)}
    )
    agent = plan.command_line(planned[1], rack, state, root)
    assert agent == [
        *("agent", "run", "/r/left/disk1", "--listen", "[::1]:40001", "--json", "--until-eof"),
        *("--low-port", "20100", "--ports", "100", "--capacity", "1TiB", "--isolate"),
    ]
    pantry = ["pantry", "run", "--listen", "[::1]:40002", "--json", "--until-eof"]
    assert plan.command_line(planned[2], rack, state, root) == pantry
    host = ["host", "run", "/r/left/host", "--listen", "[::1]:40003", "--json", "--until-eof"]
    assert plan.command_line(planned[3], rack, state, root) == [*host, "--nexus", "http://[::1]:12221"]
    assert plan.url(planned[1], rack, state) == "http://[::1]:40001"
    assert plan.url(planned[1], rack, RackState()) is None


def test_tls_and_token_reach_every_service() -> None:
    rack = RackFile((Sled("a"),), address="10.0.0.1", tls_cert="c.pem", tls_key="/k.pem", token_file="t", lenient=True)
    (agent, host), root = plan.services(rack, Path("/r")), Path("/r")
    state = RackState({agent.name: 1, host.name: 2}, {agent.name: Pool(1, 1)})
    given = ["--lenient", "--tls-cert", "/r/c.pem", "--tls-key", "/k.pem", "--token-file", "/r/t"]
    assert all(plan.command_line(each, rack, state, root)[-7:] == given for each in (agent, host))
    assert plan.url(agent, rack, state) == "https://10.0.0.1:1"
