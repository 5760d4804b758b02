"""Requests and answers that the pages have in common."""

import json
import re
from collections.abc import Callable

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from wsss.errors import BadInput
from wsss.review.material import packed


def answer(make: Callable[[Request], dict[str, object]]) -> Callable[[Request], Response]:
    """An endpoint that answers with JSON."""
    return lambda request: as_json(make(request))


def as_json(content: object, status: int = 200) -> Response:
    """An answer in JSON; only ASCII, since names that are not UTF-8 contain lone surrogates."""
    return Response(json.dumps(content), status, media_type="application/json")


def as_bytes(values: np.ndarray) -> Response:
    """An answer with the values of an array, row by row."""
    return Response(packed(values), headers={"content-encoding": "gzip"}, media_type="application/octet-stream")


def position(word: str, count: int) -> int:
    """A number below `count`.

    Raises:
        HTTPException: 404 if it is none.
    """
    if not re.fullmatch(r"[0-9]{1,9}", word) or int(word) >= count:
        raise HTTPException(404, f"A number below {count} is expected.")
    return int(word)


def _refused(request: Request, error: Exception) -> Response:
    return as_json({"error": str(error)}, 422)


def _wrong(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return as_json({"error": error.detail}, error.status_code)


# What is answered if bad input makes an answer impossible, and if a request is itself wrong
ERRORS = {BadInput: _refused, HTTPException: _wrong}
