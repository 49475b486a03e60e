"""What a deployment may ask for. Pure; the words and limits are those by which Ray places a replica."""

from __future__ import annotations

import math
import re

from core.errors import InvalidRequest
from repository.records import Deployment

MAX_REPLICAS = 1000
MAX_CPUS = 1024.0
MAX_GPUS = 64.0
"""Of one replica: the devices of one machine."""
PRECISION = 1e-4
"""Ray counts resources in ten-thousandths."""
ACCELERATOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


def check_deployment(deployment: Deployment) -> Deployment:
    """Return it, or raise InvalidRequest that names the field in which a deployment cannot be so."""
    if not 1 <= deployment.replicas <= MAX_REPLICAS:
        raise InvalidRequest(f"replicas: 1 to {MAX_REPLICAS}, not {deployment.replicas}")
    if not deployment.replicas <= deployment.max_replicas <= MAX_REPLICAS:
        raise InvalidRequest(
            f"max_replicas: {deployment.replicas} (the replicas) to {MAX_REPLICAS}, not {deployment.max_replicas}"
        )
    if not PRECISION <= deployment.cpus <= MAX_CPUS:
        raise InvalidRequest(f"cpus: {PRECISION} to {MAX_CPUS:g}, not {deployment.cpus}")
    _check_devices(deployment)
    return deployment


def _check_devices(deployment: Deployment) -> None:
    gpus, accelerator = deployment.gpus, deployment.accelerator
    if not (gpus == 0 or PRECISION <= gpus <= MAX_GPUS):
        raise InvalidRequest(f"gpus: 0, or {PRECISION} to {MAX_GPUS:g}, not {gpus}")
    if gpus > 1 and not math.modf(gpus)[0] == 0:
        raise InvalidRequest(f"gpus: a share of one device (up to 1) or whole devices, not {gpus}")
    if accelerator and not ACCELERATOR.match(accelerator):
        raise InvalidRequest(f"accelerator: {accelerator[:64]!r} is no type of device: one is H200, or L4")
    if accelerator and not gpus:
        raise InvalidRequest("accelerator: a type of device needs gpus, how much of it a replica gets")
