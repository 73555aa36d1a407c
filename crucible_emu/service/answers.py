"""How a service refuses: the envelope of the real servers, and what of the reason is told (apis-and-tools.md §0.1).

What it guarantees: every refusal is a JSON object of ``request_id``, ``message`` and perhaps ``error_code``. The real
servers hide the reasons of 404, 500 and 503 from the client, which then has to ask whoever can read the log; a
*faithful* service does the same. Otherwise the sentence is sent, for it never holds a secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

HIDDEN = frozenset({404, 500, 503})
INTERNAL = "Internal"


class Refusal(Exception):
    """A request is answered with an error: ``status``, a sentence, and perhaps a word for machines."""

    def __init__(self, status: int, message: str, error_code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error_code = error_code


@dataclass(frozen=True, slots=True)
class Envelope:
    """What goes out for a refusal."""

    request_id: str
    message: str
    error_code: str | None = None

    def as_json(self) -> dict[str, Any]:
        code = {} if self.error_code is None else {"error_code": self.error_code}
        return {"request_id": self.request_id, **code, "message": self.message}


def envelope(refusal: Refusal, request_id: str, *, faithful: bool) -> Envelope:
    """The envelope of ``refusal``."""
    code = INTERNAL if refusal.status == 500 and refusal.error_code is None else refusal.error_code
    if faithful and refusal.status in HIDDEN:
        return Envelope(request_id, HTTPStatus(refusal.status).phrase, code)
    return Envelope(request_id, str(refusal), code)
