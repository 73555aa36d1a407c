"""The client's side of TLS: whom to trust, and who to be.

What it guarantees: a server's name is always checked against its certificate; there is no way to turn that off. A file
that is no certificate costs one sentence that names it.
"""

from __future__ import annotations

import ssl

from crucible_emu.errors import UsageError


def client_context(
    authorities: str | None = None, certificate: str | None = None, key: str | None = None
) -> ssl.SSLContext:
    """A context that trusts the PEM file ``authorities`` (the system's by default), and shows ``certificate`` with
    its ``key`` to a server that asks. Raises :class:`UsageError`."""
    if key is not None and certificate is None:
        raise UsageError(f"the key '{key}' has no certificate: give both")
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=authorities)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"'{authorities}' holds no certificate authorities in PEM form: {error}") from None
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"'{certificate}' and '{key or certificate}' are no certificate and key: {error}"
            ) from None
    return context
