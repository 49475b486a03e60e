"""The unit of every ratio: a bare ASGI app on uvicorn that parses a V2 body and answers one of the same size.

    python -m benchmarks.echo PORT

A JSON body is parsed and rendered with orjson; a binary one (`Inference-Header-Content-Length`) has its JSON part
parsed and rendered and its tensors sent back as they came. No identity, no model, no batching.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson
import uvicorn

Message = MutableMapping[str, Any]
HEADER_LENGTH = b"inference-header-content-length"


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    body = b""
    more = True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    headers, answer = echoed(body, dict(scope["headers"]).get(HEADER_LENGTH))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def echoed(body: bytes, header_length: bytes | None) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Response headers and body."""
    if header_length is None:
        answer = orjson.dumps(orjson.loads(body))
        return [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))], answer
    cut = int(header_length)
    header = orjson.dumps(orjson.loads(body[:cut]))
    answer = header + body[cut:]
    return [
        (b"content-type", b"application/octet-stream"),
        (HEADER_LENGTH, b"%d" % len(header)),
        (b"content-length", b"%d" % len(answer)),
    ], answer


def main(port: int) -> None:
    """Same flags as Penstock's own server."""
    uvicorn.run(app, port=port, loop="uvloop", http="httptools", lifespan="off", access_log=False, log_level="warning")


if __name__ == "__main__":
    main(int(sys.argv[1]))
