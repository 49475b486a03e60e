"""The asynchronous client: the verbs of `client.py`, awaited. What they mean is documented there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import httpx

from penstock import calls, deploying, predicting
from penstock.calls import Call, Record
from penstock.config import Config
from penstock.deploying import Wish
from penstock.errors import PenstockError
from penstock.names import check_model
from penstock.predicting import Flow, Prediction, Question, Signatures
from penstock.pushing import Progress, opened, parcel
from penstock.transport import (
    DEFAULT_TIMEOUT,
    RetryBudget,
    answer_of,
    checked_timeout,
    failure_of,
    options_of,
    request_of,
    target_of,
    time_of,
)
from penstock.wire import Response

T = TypeVar("T")


class AsyncClient:
    """`Client` for asyncio: any number of calls at once on one event loop. Use it in an `async with` block."""

    def __init__(self, config: Config, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        checked_timeout(timeout)
        self.config = config
        self.keys = AsyncKeys(self)
        self._timeout = timeout
        self._http = httpx.AsyncClient(**options_of(config))
        self._signatures = Signatures()
        self._budget = RetryBudget()

    def __repr__(self) -> str:
        return f"AsyncClient({self.config.data.url!r})"

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    # --- predictions ---

    async def predict(
        self,
        model: str,
        X: Any,  # noqa: N803 - scikit-learn's name for it
        *,
        version: str | int | None = None,
        timeout: float | None = None,
        parameters: Mapping[str, Any] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> Prediction:
        response = await self.infer(model, X, version=version, timeout=timeout, parameters=parameters, outputs=outputs)
        return predicting.main_output(response, outputs)

    async def infer(
        self,
        model: str,
        X: Any,  # noqa: N803
        *,
        version: str | int | None = None,
        timeout: float | None = None,
        parameters: Mapping[str, Any] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> Response:
        checked_timeout(timeout)
        question = Question(model, X, version, timeout, parameters, outputs)
        return await self._run(predicting.infer(self._signatures, question), timeout)

    async def metadata(self, model: str, version: str | int | None = None) -> Record:
        return await self._send(calls.metadata(model, version))

    async def ready(self) -> bool:
        try:
            await self._send(calls.ready())
        except PenstockError:
            return False
        return True

    async def server(self) -> Record:
        return await self._send(calls.server())

    # --- models ---

    async def models(self) -> list[Record]:
        return await self._send(calls.models())

    async def model(self, name: str) -> Record:
        return await self._send(calls.model(name))

    async def version(self, name: str, number: int | str) -> Record:
        return await self._send(calls.version(name, number))

    async def architectures(self) -> list[Record]:
        return await self._send(calls.architectures())

    async def push(
        self,
        model: Any,
        name: str,
        *,
        example: Any = None,
        signature: Mapping[str, Any] | None = None,
        max_batch: int | None = None,
        alias: str | None = None,
        allow_code: bool = False,
        architecture: str | None = None,
        tags: Mapping[str, str] | None = None,
        default_deadline_ms: int | None = None,
        queue_bound: int | None = None,
        warmup: Sequence[int] | None = None,
        wait: float | None = None,
        progress: Progress | None = None,
    ) -> Record:
        check_model(name)
        parts = await asyncio.to_thread(
            parcel,
            model,
            example=example,
            signature=signature,
            max_batch=max_batch,
            alias=alias,
            allow_code=allow_code,
            architecture=architecture,
            tags=tags,
            default_deadline_ms=default_deadline_ms,
            queue_bound=queue_bound,
            warmup=warmup,
        )
        with opened(parts, progress) as artifact:
            record = await self._send(calls.push(name, parts.manifest, artifact, wait))
        self._signatures.forget(name)
        return record

    async def alias(self, name: str, alias: str, version: int | str) -> Record:
        return await self._send(calls.alias(name, alias, version))

    async def unalias(self, name: str, alias: str) -> None:
        await self._send(calls.unalias(name, alias))

    async def load(self, name: str, version: int | str | None = None) -> Record:
        return await self._send(calls.load(name, version))

    async def unload(self, name: str, version: int | str | None = None) -> Record:
        return await self._send(calls.unload(name, version))

    async def delete(self, name: str, version: int | str | None = None) -> None:
        await self._send(calls.delete(name, version))

    async def tag(self, name: str, version: int | str, tags: Mapping[str, str]) -> Record:
        return await self._send(calls.tag(name, version, tags))

    async def whoami(self) -> Record:
        return await self._send(calls.whoami())

    # --- deployments ---

    async def deployment(self, name: str) -> Record:
        return await self._send(calls.deployment(name))

    async def deploy(
        self,
        name: str,
        *,
        replicas: int | None = None,
        max_replicas: int | None = None,
        cpus: float | None = None,
        gpus: float | None = None,
        accelerator: str | None = None,
    ) -> Record:
        wish = Wish(replicas, max_replicas, cpus, gpus, accelerator)
        return await self._run(deploying.deploy(name, wish), None)

    async def reset_deployment(self, name: str) -> Record:
        return await self._send(calls.reset_deployment(name))

    async def status(self) -> Record:
        return await self._send(calls.status())

    # --- sending ---

    async def _run(self, flow: Flow[T], timeout: float | None) -> T:
        """Drive a flow: send each call it yields and give it the answer, all within `timeout`."""
        end = time.monotonic() + (self._timeout if timeout is None else timeout)
        try:
            call = next(flow)
            while True:
                try:
                    result = await self._send(call, end - time.monotonic())
                except PenstockError as error:
                    call = flow.throw(error)
                else:
                    call = flow.send(result)
        except StopIteration as stop:
            found: T = stop.value
            return found

    async def _send(self, call: Call[T], allowed: float | None = None) -> T:
        """Send a call, once more where its budget permits, and read the answer."""
        allowed = time_of(call, self._timeout) if allowed is None else allowed
        end = time.monotonic() + allowed
        url = target_of(self.config, call).url
        self._budget.earn()
        while True:
            left = max(0.001, end - time.monotonic())
            try:
                async with asyncio.timeout(left):
                    answer = answer_of(await self._http.send(request_of(self._http, self.config, call, left)))
            except (httpx.HTTPError, TimeoutError) as error:
                raise failure_of(error, url) from error
            pause = self._budget.wait(call, answer, end - time.monotonic())
            if pause is None:
                return call.read(calls.check(answer, url))
            await asyncio.sleep(pause)


class AsyncKeys:
    """API keys; needs a key of the role admin."""

    def __init__(self, client: AsyncClient) -> None:
        self._send = client._send

    async def create(
        self,
        name: str,
        *,
        role: str = "predict",
        owner: str | None = None,
        models: Sequence[str] = ("*",),
        grants: Sequence[str] = (),
        expires_in_s: float | None = None,
    ) -> Record:
        return await self._send(calls.create_key(name, role, owner, models, grants, expires_in_s))

    async def list(self) -> list[Record]:
        return await self._send(calls.keys())

    async def revoke(self, key_id: str) -> None:
        await self._send(calls.revoke_key(key_id))
