"""The log check itself, tried on small suites run inside this one."""

import pytest

pytest_plugins = ["pytester"]

SUITE = """
import logging
from crucible_emu import logs

log = logs.get_logger("crucible_emu.inner")

def test_quiet():
    log.info("all is well")

def test_warning():
    log.warning("disk is worn", wear=9)

def test_foreign_error():
    logging.getLogger("somebody").error("oh no")

def test_whisper():
    log.info("swallowed an exception")

def test_bare_structlog():
    import structlog
    structlog.get_logger().warning("printed")

def test_declared(expect_log):
    with expect_log("worn wear=9"):
        log.warning("disk is worn", wear=9)

def test_declared_for_the_rest(expect_log):
    expect_log("worn", at_least=2)
    log.warning("disk is worn")
    log.warning("disk is worn")

def test_declared_but_quiet(expect_log):
    expect_log("worn")

def test_declared_block_but_quiet(expect_log):
    with expect_log("worn"):
        pass
    log.warning("disk is worn")

def test_perhaps(expect_log):
    expect_log("worn", at_least=0)
"""

PASS = {"test_quiet", "test_declared", "test_declared_for_the_rest", "test_perhaps"}
TEARDOWN = {"test_warning", "test_foreign_error", "test_whisper", "test_bare_structlog", "test_declared_but_quiet"}


def test_only_declared_records_pass(pytester: pytest.Pytester, expect_log) -> None:
    expect_log(".")  # the check of this suite hears what the inner tests log
    pytester.makepyfile(SUITE)
    result = pytester.inline_run("-p", "log_check", "-p", "no:timeout")
    passed, _skipped, failed = result.listoutcomes()
    bad = {report.nodeid.split("::")[1] for report in failed if report.when == "teardown"}
    assert {report.nodeid.split("::")[1] for report in passed if report.when == "call"} == PASS | TEARDOWN
    assert bad == TEARDOWN | {"test_declared_block_but_quiet"}
    assert [report.nodeid.split("::")[1] for report in failed if report.when == "call"] == [
        "test_declared_block_but_quiet"
    ]
    texts = "\n".join(report.longreprtext for report in failed)
    assert "WARNING crucible_emu.inner: disk is worn wear=9" in texts
    assert "ERROR somebody: oh no" in texts


def test_missing_program_skips_here_and_fails_in_ci(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makepyfile('def test_it(require_program): require_program("no-such-program")')
    monkeypatch.delenv("CI", raising=False)
    pytester.inline_run("-p", "real_clients").assertoutcome(skipped=1)
    monkeypatch.setenv("CI", "true")
    pytester.inline_run("-p", "real_clients").assertoutcome(failed=1)
