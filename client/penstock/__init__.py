"""SDK of the Penstock inference gateway.

    import penstock
    ps = penstock.connect()          # address and key from the environment or .penstock/
    ps.push(estimator, "iris", example=X[:1])
    ps.predict("iris", X)            # numpy in, numpy out

What it offers is loaded when it is first used, so that the `penstock` command starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from penstock import errors

if TYPE_CHECKING:
    from penstock.aio import AsyncClient
    from penstock.client import Client

__all__ = ["AsyncClient", "Client", "connect", "connect_async", "errors"]
__version__ = "0.1.0"

_LAZY = {"AsyncClient": "penstock.aio", "Client": "penstock.client"}


def connect(
    url: str | None = None, *, api_key: str | None = None, control: str | None = None, timeout: float = 60.0
) -> Client:
    """A client of the server at `url`; what is not given comes from PENSTOCK_* variables, then from client.toml.

    `control`: where /api/v1 lives, where that is another address. `timeout`: seconds for an answer, by default.
    Raises errors.NotConfigured where no address is known, and at the first call where no key is.
    """
    from penstock.client import Client
    from penstock.config import read

    return Client(read(url, api_key, control), timeout=timeout)


def connect_async(
    url: str | None = None, *, api_key: str | None = None, control: str | None = None, timeout: float = 60.0
) -> AsyncClient:
    """As `connect`, for asyncio: `async with penstock.connect_async() as ps: await ps.predict(…)`."""
    from penstock.aio import AsyncClient
    from penstock.config import read

    return AsyncClient(read(url, api_key, control), timeout=timeout)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")
