"""Where a service listens, and who may be let near it.

What it is for: the APIs can destroy data and their documents carry keys, so by default only this machine reaches them.
*Safety*: an address beyond loopback is refused without TLS and a bearer token. On loopback a web page is refused that a
browser on this machine may be made to load: its requests carry an ``Origin``.
"""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from crucible_emu.errors import UsageError
from crucible_emu.service.answers import Refusal

TOKEN_BYTES_MIN = 16


@dataclass(frozen=True, slots=True)
class Exposure:
    """``address``: ``ip:port`` or ``[ip]:port``, port 0 for any. The token is what clients send as
    ``Authorization: Bearer``."""

    address: str = "[::1]:0"
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    token: str | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        return self._split()[0]

    @property
    def port(self) -> int:
        return self._split()[1]

    @property
    def tls(self) -> bool:
        return self.tls_certificate is not None

    def check(self, *, knows_callers: bool = False) -> None:
        """Raises :class:`UsageError` where the address is none, or where it would be open to strangers. With
        ``knows_callers`` the service has tokens of its own, and needs TLS only."""
        host, _ = self._split()
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise UsageError("TLS needs both files: give --tls-cert and --tls-key")
        for path in (self.tls_certificate, self.tls_key):
            if path is not None and not path.is_file():
                raise UsageError(f"{path} is no file: give --tls-cert and --tls-key files in PEM")
        if self.token is not None and len(self.token.encode()) < TOKEN_BYTES_MIN:
            raise UsageError(f"the token is too short: take at least {TOKEN_BYTES_MIN} characters")
        if ipaddress.ip_address(host).is_loopback or (self.tls and (knows_callers or self.token is not None)):
            return
        raise UsageError(
            f"{self.address} can be reached from other machines: give --tls-cert, --tls-key and --token-file, "
            "or listen on [::1]"
        )

    def _split(self) -> tuple[str, int]:
        host, _, port = self.address.rpartition(":")
        try:
            address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
            number = int(port) if port.isascii() and port.isdecimal() else -1
        except ValueError:
            number = -1
        if not 0 <= number <= 0xFFFF:
            raise UsageError(f"{self.address!r} is no address: write ip:port or [ip]:port")
        return str(address), number


def read_token(path: Path | None) -> str | None:
    """The token in a file, without the white space around it. Raises :class:`UsageError`."""
    if path is None:
        return None
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the token file {path} cannot be read: {error}") from None
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"the token in {path} holds more than one printable word")
    return token


def admit(method: str, authorization: str | None, origin: str | None, token: str | None) -> None:
    """*Safety*: let nobody in who should not be. Raises :class:`Refusal` (401, 403)."""
    if token is None:
        if origin is not None and method not in ("GET", "HEAD"):
            raise Refusal(403, "a web page may not change anything here: the request has an Origin")
        return
    scheme, _, given = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise Refusal(401, "this service wants a bearer token: send Authorization: Bearer TOKEN")
