"""Ask a running server about one request."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any


def explain_request(url: str, request_id: str) -> dict[str, Any]:
    """What the server remembers of the request. Raises ValueError with a clear message."""
    address = f"{url.rstrip('/')}/v2/requests/{urllib.parse.quote(request_id, safe='')}"
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise ValueError(
                f"{url} does not remember a request {request_id!r}; only recent ones are kept"
            ) from None
        raise ValueError(f"{url} answered {error.code}") from None
    except (urllib.error.URLError, TimeoutError, ValueError) as error:
        raise ValueError(f"{url} cannot be asked: {getattr(error, 'reason', error)}") from None
