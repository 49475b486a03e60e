"""What a host of workers opened → the transport that reaches it."""

from __future__ import annotations

from core.settings import Settings
from gateway.transports.base import Transport
from gateway.transports.inproc import InProcess
from gateway.transports.process import Process
from workers.child import Child
from workers.worker import Worker


def transport_for(endpoint: Worker | Child, settings: Settings) -> Transport:
    """A transport for a worker in this process or in a child's, with the window and the times of the settings."""
    if isinstance(endpoint, Child):
        return Process(endpoint, settings.window, settings.child_patience_s, settings.drain_timeout_s)
    return InProcess(endpoint, settings.window, settings.drain_timeout_s)
