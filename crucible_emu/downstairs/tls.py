"""TLS of a Downstairs: mutual, all or nothing (wire-protocol.md §6.7).

A peer must show a certificate that chains to the configured root, and gets one to check in turn: an Upstairs expects
it to be valid for ``downstairs0``, ``downstairs1`` or ``downstairs2``, by its place in the list of targets. Keys are
PEM, PKCS#1 or PKCS#8 (the real program takes PKCS#1 only). The repair service never uses TLS.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from crucible_emu.errors import UsageError


def server_context(cert_pem: Path, key_pem: Path, root_cert_pem: Path) -> ssl.SSLContext:
    """The context for a listening Downstairs. Raises :class:`UsageError` that names the file that is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_RENEGOTIATION
    for path in (cert_pem, key_pem, root_cert_pem):
        try:
            path.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    try:
        # The password is asked for nobody's sake: a key that needs one is refused instead of waiting at a terminal.
        context.load_cert_chain(cert_pem, key_pem, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise UsageError(f"{cert_pem} and {key_pem} are not a PEM certificate and its key: {reason}") from None
    try:
        context.load_verify_locations(root_cert_pem)
    except ssl.SSLError as error:
        raise UsageError(f"{root_cert_pem} holds no PEM certificate: {error.reason or error}") from None
    return context


def _no_password() -> str:
    raise ValueError("the key is protected by a password: give one that is not")
