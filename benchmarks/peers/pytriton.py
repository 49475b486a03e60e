"""pytriton: the same server, with the model in a Python process of the user's behind pytriton's proxy."""

from __future__ import annotations

import functools
import signal

from benchmarks.peers import triton
from benchmarks.peers.base import MAX_BATCH, MAX_IMAGES, SERVED, Peer, Program, Site, foreign


def program(site: Site) -> Program:
    """Only an interrupt makes it end its server too."""
    command = [str(site.python), str(SERVED / "pytriton_server.py")]
    return Program(command, {"PYTRITON_HOME": str(site.folder / "home")}, signal.SIGINT)


PEER = Peer(
    name="pytriton",
    title="pytriton 0.7 (Triton 2.51)",
    settings=f"one inference callable, DynamicBatcher() (no delay), max_batch_size {MAX_BATCH} (images {MAX_IMAGES}), "
    "metrics off",
    serve=functools.partial(foreign, "triton", program, triton.told),
)
