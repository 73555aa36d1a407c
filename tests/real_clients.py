"""A pytest plugin: the programs and modules of real clients, and what to do where one is missing.

On somebody's own machine a missing program skips the test and says which package has it. In CI (``CI`` set) it fails
the test: there everything is installed, and a skipped test would be a check that nobody runs.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

import pytest

PACKAGES = {
    "nbdinfo": "libnbd-bin",
    "nbdcopy": "libnbd-bin",
    "nbdfuse": "libnbd-bin",
    "nbdsh": "python3-libnbd",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "mkfs.ext4": "e2fsprogs",
    "fsck.ext4": "e2fsprogs",
    "fusermount3": "fuse3",
}
"""The Debian package of a program, where it is not called the same."""

LIBNBD = "python3-libnbd"
DISTRIBUTION_MODULES = "/usr/lib/python3/dist-packages"
ADMINISTRATOR_PATH = ":/usr/sbin:/sbin"


def missing(what: str, package: str) -> NoReturn:
    sentence = f"{what} is missing (Debian package {package})"
    if os.environ.get("CI"):
        pytest.fail(f"{sentence}; CI must not skip it", pytrace=False)
    pytest.skip(sentence)


@pytest.fixture(scope="session")
def require_program() -> Callable[[str], str]:
    """``require_program("nbdinfo")`` is the program's path; without it the test skips, and in CI fails."""

    def require(name: str) -> str:
        path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ADMINISTRATOR_PATH)
        return path if path is not None else missing(name, PACKAGES.get(name, name))

    return require


@pytest.fixture(scope="session")
def require_libnbd() -> Callable[[], ModuleType]:
    """``require_libnbd()`` is libnbd's Python module, which only distributions package; missing as above.

    A virtual environment does not see the distribution's modules. The folder goes to the end of the path for the
    import alone, so that nothing else is taken from it.
    """

    def require() -> ModuleType:
        sys.path.append(DISTRIBUTION_MODULES)
        try:
            import nbd
        except ImportError as error:
            missing(f"libnbd's module for Python {sys.version_info.major}.{sys.version_info.minor} ({error})", LIBNBD)
        finally:
            sys.path.remove(DISTRIBUTION_MODULES)
        if not hasattr(nbd, "NBD"):  # our own folder of that name, which is found where the module is not
            missing("libnbd's module for Python", LIBNBD)
        return nbd

    return require
