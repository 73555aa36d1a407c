"""``crucible-emu agent run``: the ready line, an orderly end, and input that is wrong."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx2
import pytest
from command_rig import COMMAND, END_S, refusal, running

HEADERS = {"api-version": "1.0.0"}


def test_agent_says_where_it_is_and_ends_in_order(tmp_path: Path) -> None:
    with running("agent", "run", tmp_path / "d", "--low-port", 26000, "--json") as agent:
        ready = agent.ready
        assert (ready["ready"], ready["pid"]) == (True, agent.process.pid)
        assert ready["url"].startswith("http://[::1]:")
        assert httpx2.get(f"{ready['url']}/crucible/0/regions", headers=HEADERS).json() == []
        second = subprocess.run(
            [*COMMAND, "agent", "run", str(tmp_path / "d")], capture_output=True, text=True, timeout=END_S
        )
        assert second.returncode == 2
        assert second.stderr == f"Error: another agent has {tmp_path / 'd'}: stop that one, or name another directory\n"
        agent.end_well()


def test_agent_ends_with_its_input_and_answers_without_a_version(tmp_path: Path) -> None:
    with running(
        *("agent", "run", tmp_path / "d", "--lenient", "--until-eof", "--listen", "127.0.0.1:0"), stdin=subprocess.PIPE
    ) as agent:
        assert agent.line.startswith("Ready: the agent at http://127.0.0.1:")
        assert httpx2.get(f"{agent.line.split()[-1]}/crucible/0/regions").json() == []
        assert agent.process.stdin is not None
        agent.process.stdin.close()
        assert agent.process.wait(END_S) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--low-port", "60800"], "--low-port 60800: take 1 to 60536, so that repair ports fit"),
        (["--low-port", "0"], "--low-port 0: take 1 to 60536, so that repair ports fit"),
        (["--ports", "4001"], "--ports 4001: take 1 to 4000, the distance to the repair ports"),
        (["--fail", "flush"], "'flush' is nothing that can be made to fail: take one of create, delete, run"),
        (["--slow", "-1"], "-1.0 is no time to be slow for: take 0 to 3600 seconds"),
        (["--capacity", "much"], "'much' is not a size: write a number with a unit, such as 512, 64KiB, 100MB or 1GiB"),
        (["--listen", "nowhere"], "'nowhere' is no address: write ip:port or [ip]:port"),
    ],
)
def test_input_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    assert refusal(capsys, "agent", "run", tmp_path / "d", *options) == (2, said)
    assert not (tmp_path / "d").exists()


def test_data_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "crucible.json").write_text("[]")
    code, said = refusal(capsys, "agent", "run", tmp_path)
    assert code == 2
    assert said.startswith(f"{tmp_path / 'crucible.json'} is no data file of an agent: the file: ")
