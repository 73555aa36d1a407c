"""How an HTTP API of this project refuses: the envelope of the real programs' servers.

What it is for: every API of the data plane that is made with Starlette answers what cannot be done with a JSON object
of a sentence and the request's id, which is in a header as well (apis-and-tools.md). One place says how that looks.
"""

from __future__ import annotations

from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response


def error_response(status_code: int, message: str) -> Response:
    """The refusal with ``message``, a sentence for a person."""
    request_id = str(uuid4())
    return JSONResponse(
        {"request_id": request_id, "message": message}, status_code=status_code, headers={"x-request-id": request_id}
    )


async def refused(_request: Request, error: Exception) -> Response:
    """The handler of what Starlette refuses itself: an unknown path, another method."""
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, error.detail)
