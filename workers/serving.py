"""Ray Serve as the reconciler sees it: one application for each model version, with one deployment of replicas.

Serve's own HTTP proxy is never started, and no handle is used. Ray's calls block, and without its head some never
return, so each runs in a thread of its own and is waited for so long and no longer. A driver whose head is gone joins
no other cluster for sure, and Ray ends its process after a minute: the reconciler gives up before that.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
import ray
import structlog
from ray import serve
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.serve.api import RunTarget
from ray.serve.context import _get_global_client

from core.errors import Unavailable
from core.settings import Settings
from repository.catalog import Place
from repository.records import Version
from workers.draining import bounds
from workers.loading import in_thread
from workers.placement import Cluster, Node, Spec
from workers.reconcile import Application
from workers.replica import Replica

log = structlog.get_logger(__name__)

T = TypeVar("T")

DEPLOYMENT = "replica"
CODE = "penstock"
"""Serve restarts replicas when this changes, and when their resources do, but not for another number of them, nor for
another time to stop."""
NAMESPACE = "serve"
HEALTH_PERIOD_S = 2.0
"""A replica whose process died is replaced after this at the latest."""
ANSWER_S = 10.0
"""Within which Ray answers, or counts as away."""
CONNECT_S = 5.0
LEAVE_S = 10.0
STOP_LOOK_S = 0.1
NUMBER = re.compile(r"-?[0-9]{1,19}\Z")
NEVER_CALLED = 100
"""Requests at one time that Serve may send to a replica: none ever comes that way."""


class Serving:
    """Every method raises Unavailable where Ray is away."""

    def __init__(self, settings: Settings, settings_file: str) -> None:
        """`settings_file`: what replicas on this host read their settings from."""
        self._settings = settings
        self._settings_file = settings_file

    def connect(self) -> None:
        """Join the cluster of RAY_ADDRESS, or the one that runs on this host, and have Serve there. Blocks."""
        check_listening(os.environ.get("RAY_ADDRESS", ""))
        try:
            ray.init(address="auto", namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
            serve.start(proxy_location="Disabled")
        except Exception as error:
            raise Unavailable(f"Ray cannot be joined: {' '.join(str(error).split())[:300]}") from error

    async def close(self) -> None:
        """Leave the cluster; what runs there goes on."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await in_thread(ray.shutdown, lambda _: None)

    async def applications(self) -> dict[Place, Application]:
        details = await _asked(_details)
        found = {}
        for name, told in details["applications"].items():
            place = place_of(name)
            deployment = told["deployments"].get(DEPLOYMENT)
            if place is not None and (deployment is not None or _status(told) == "DELETING"):
                found[place] = _application(told, deployment)
        return found

    async def cluster(self) -> Cluster:
        state = await _asked(_resources)
        nodes = [Node(dict(node.total_resources), dict(node.available_resources)) for node in state.node_states]
        pending = [dict(asked.request.resources_bundle) for asked in state.pending_resource_requests]
        return Cluster([node for node in nodes if node.total], pending)

    async def deploy(self, version: Version, spec: Spec) -> None:
        """Have it so, soon: a new application, or more or fewer replicas, or others in place of those there are."""
        record = msgspec.msgpack.encode(version)
        stop_s = bounds(version.default_deadline_ms, self._settings.drain_timeout_s).stop
        target = RunTarget(
            _deployment(spec, stop_s).bind(record, self._settings_file),
            name=name_of(version.model, version.version),
            route_prefix=None,
        )
        await _asked(
            lambda: serve.run_many(
                [target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
            )
        )

    async def delete(self, place: Place) -> None:
        """Begin to stop its replicas, each of which drains."""
        await _asked(lambda: serve.delete(name_of(*place), _blocking=False))


def check_listening(address: str) -> None:
    """Raise Unavailable where `address` is host:port and nobody listens there: Ray itself would try for long."""
    host, colon, port = address.rpartition(":")
    if not colon or "://" in address or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise Unavailable(f"Ray cannot be joined: {address}, of RAY_ADDRESS: {error.strerror or error}") from error


def name_of(model: str, version: int) -> str:
    """A version's application."""
    return f"{model}.{version}"


def place_of(name: str) -> Place | None:
    """The version of an application, be it a number that no version has: such a one is nobody's, and is taken away.
    None for one that is not ours."""
    model, dot, number = name.rpartition(".")
    return (model, int(number)) if dot and model and NUMBER.match(number) else None


def _deployment(spec: Spec, stop_s: float) -> Any:
    actor: dict[str, Any] = {"num_cpus": spec.cpus, "num_gpus": spec.gpus}
    if spec.accelerator:
        actor["accelerator_type"] = spec.accelerator
    made: Any = serve.deployment(
        Replica,
        name=DEPLOYMENT,
        num_replicas=spec.replicas,
        ray_actor_options=actor,
        max_ongoing_requests=NEVER_CALLED,
        max_surge_percent=100,
        graceful_shutdown_wait_loop_s=STOP_LOOK_S,
        graceful_shutdown_timeout_s=stop_s,
        health_check_period_s=HEALTH_PERIOD_S,
    )
    return made.options(version=CODE, _internal=True)


def _application(told: dict[str, Any], deployment: dict[str, Any] | None) -> Application:
    status = _status(told)
    if deployment is None:
        return Application(Spec(0, 0.0), leaving=True)
    actor = deployment["deployment_config"]["ray_actor_options"]
    spec = Spec(
        deployment["target_num_replicas"],
        actor.get("num_cpus", 0.0),
        actor.get("num_gpus", 0.0) or 0.0,
        actor.get("accelerator_type") or "",
    )
    settled = _status(deployment) == "HEALTHY"
    return Application(spec, status == "DEPLOY_FAILED", status == "DELETING", settled)


def _status(told: dict[str, Any]) -> str:
    return str(getattr(told["status"], "value", told["status"]))


def _details() -> dict[str, Any]:
    client = _get_global_client()
    assert client is not None
    details: dict[str, Any] = client.get_serve_details()
    return details


def _resources() -> Any:
    worker: Any = ray._private.worker.global_worker
    return get_cluster_resource_state(worker.gcs_client)


async def _asked(call: Callable[[], T]) -> T:
    try:
        async with asyncio.timeout(ANSWER_S):
            return await in_thread(call, lambda _: None)
    except Exception as error:
        log.warning("ray failed", error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        raise Unavailable("Ray cannot be reached") from error
