"""The project's loggers: lines of JSON, and never a secret."""

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import structlog
from pydantic import BaseModel

from crucible_emu import logs
from crucible_emu.errors import UsageError


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a configured program would write, restored afterwards."""
    root = logging.getLogger()
    level, stream = root.level, io.StringIO()
    logs.configure(stream, "info")
    yield stream
    root.setLevel(level)
    for handler in [handler for handler in root.handlers if isinstance(handler.formatter, logs.JsonLines)]:
        root.removeHandler(handler)


def parsed(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_event_is_one_line_of_json_with_its_fields(lines: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(volume="v1"):
        logs.get_logger("crucible_emu.test").info("region opened", extents=15, name="r0", share="100%s")
    (line,) = parsed(lines)
    assert line.pop("time")
    assert line == {
        "level": "info",
        "logger": "crucible_emu.test",
        "event": "region opened",
        "extents": 15,
        "name": "r0",
        "share": "100%s",
        "volume": "v1",
    }


def test_field_never_replaces_what_the_line_says_itself(lines: io.StringIO) -> None:
    logs.get_logger("crucible_emu.test").info("opened", level="ground")
    (line,) = parsed(lines)
    assert (line["level"], line["level_"]) == ("info", "ground")


def test_below_the_level_nothing_is_written(lines: io.StringIO) -> None:
    logs.get_logger("crucible_emu.test").debug("quiet")
    assert lines.getvalue() == ""


def test_foreign_records_become_lines_too(lines: io.StringIO) -> None:
    logging.getLogger("hypercorn.error").info("running on %s", "http://[::1]:1")
    assert parsed(lines)[0]["event"] == "running on http://[::1]:1"


def test_configuring_twice_writes_once(lines: io.StringIO) -> None:
    logs.configure(lines, "info")
    logs.get_logger("crucible_emu.test").info("once")
    assert len(parsed(lines)) == 1


def test_failure_carries_its_trace(lines: io.StringIO, expect_log) -> None:
    with expect_log("flush failed"):
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            logs.get_logger("crucible_emu.test").exception("flush failed")
    assert "No space left on device" in str(parsed(lines)[0]["exception"])


@dataclass
class Plain:
    key: str
    size: int


class Model(BaseModel):
    key_pem: str | None
    inner: dict[str, str]


def test_secrets_are_left_out_at_any_depth(lines: io.StringIO) -> None:
    logs.get_logger("crucible_emu.test").info(
        "volume made",
        token="HIDE",
        Encryption_Key="HIDE",
        vcr={"region": {"opts": [{"key": "HIDE", "id": "shown"}]}},
        plain=Plain("HIDE", 1),
        model=Model(key_pem="HIDE", inner={"secret": "HIDE"}),
        several=(Plain("HIDE", 2),),
        keys=3,
    )
    assert "HIDE" not in lines.getvalue()
    (line,) = parsed(lines)
    assert line["vcr"] == {"region": {"opts": [{"key": logs.REDACTED, "id": "shown"}]}}
    assert line["plain"] == {"key": logs.REDACTED, "size": 1}
    assert line["keys"] == 3


def test_absent_secret_is_said_to_be_absent() -> None:
    assert logs.without_secrets({"key": None}) == {"key": None}


def test_unknown_level_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.LEVEL_VARIABLE, "chatty")
    with pytest.raises(UsageError, match="CRUCIBLE_EMU_LOG is 'chatty'; it is one of debug, info, warning, error"):
        logs.configure()
