"""The client: numpy in, numpy out, over V2 REST and /api/v1. `aio.py` is its asynchronous twin, verb for verb."""

from __future__ import annotations

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


class Client:
    """Speaks to one server; may be shared by threads. Close it, or use it in a `with` block.

    Every method raises a leaf of `penstock.errors`. Records are dicts, as the server's JSON has them.
    """

    def __init__(self, config: Config, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        checked_timeout(timeout)
        self.config = config
        self.keys = Keys(self)
        self._timeout = timeout
        self._http = httpx.Client(**options_of(config))
        self._signatures = Signatures()
        self._budget = RetryBudget()

    def __repr__(self) -> str:
        return f"Client({self.config.data.url!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- predictions ---

    def predict(
        self,
        model: str,
        X: Any,  # noqa: N803 - scikit-learn's name for it
        *,
        version: str | int | None = None,
        timeout: float | None = None,
        parameters: Mapping[str, Any] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> Prediction:
        """Predict for the rows of `X`: an array, list or frame for a model of one input, else a dict name → array.

        Values are cast to the datatypes that the model declares; a cast that would lose something is refused
        (InvalidInput). Returns one array where the model has one output, where `outputs` names one, or where one of
        several is called `predict` (scikit-learn's classifiers: the labels; ask for `outputs=["predict_proba"]`);
        else a dict name → array. `infer` always gives all of them. BYTES come as object arrays of bytes, BF16 as
        `ml_dtypes.bfloat16`. More rows than the model's largest batch go in several requests, all answered by one
        version. `version`: a number or an alias. `timeout` in seconds, for the server as well.
        """
        response = self.infer(model, X, version=version, timeout=timeout, parameters=parameters, outputs=outputs)
        return predicting.main_output(response, outputs)

    def infer(
        self,
        model: str,
        X: Any,  # noqa: N803
        *,
        version: str | int | None = None,
        timeout: float | None = None,
        parameters: Mapping[str, Any] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> Response:
        """As `predict`, with all that the answer holds: `.outputs` (a dict name → array), `.version`, `.datatypes`."""
        checked_timeout(timeout)
        question = Question(model, X, version, timeout, parameters, outputs)
        return self._run(predicting.infer(self._signatures, question), timeout)

    def metadata(self, model: str, version: str | int | None = None) -> Record:
        """V2 metadata: name, versions, platform, inputs, outputs."""
        return self._send(calls.metadata(model, version))

    def ready(self) -> bool:
        """Whether the server answers that it is ready; False also where nothing answers."""
        try:
            self._send(calls.ready())
        except PenstockError:
            return False
        return True

    def server(self) -> Record:
        """Name, version and extensions of the server."""
        return self._send(calls.server())

    # --- models ---

    def models(self) -> list[Record]:
        """Every model that the key may see, with its aliases and versions (newest first)."""
        return self._send(calls.models())

    def model(self, name: str) -> Record:
        return self._send(calls.model(name))

    def version(self, name: str, number: int | str) -> Record:
        """One version's record, by number or alias."""
        return self._send(calls.version(name, number))

    def architectures(self) -> list[Record]:
        """The torch architectures whose weights can be pushed as safetensors: name and description of each."""
        return self._send(calls.architectures())

    def push(
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
        """Make `model` the next version of `name`; returns its record once it is ready to predict.

        `model`: a path (.onnx, .safetensors, .pt2, .skops, .py or "models.py:Class"), a scikit-learn estimator
        (written by skops), a torch module (exported to ONNX by running `example`; with `architecture` only its
        weights go), or a class that stands in a file. `example`: one row or a few, an array, list, frame or dict
        name → array; the signature is read off it where the artifact tells none, first dimension variable.
        `signature`: V2 metadata, {"inputs": [{"name", "datatype", "shape"}], "outputs": […]}. `max_batch`: rows of one
        execution, 0 = no batching. `warmup`: batch sizes run before it is ready. `allow_code`: for .py and .pt2,
        which run their own code at the server. `wait`: seconds it may take to become ready, None = the server's
        limit. Raises InvalidInput for what cannot be sent, BadRequest with the reason for what would not load.
        """
        check_model(name)
        parts = parcel(
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
            record = self._send(calls.push(name, parts.manifest, artifact, wait))
        self._signatures.forget(name)
        return record

    def alias(self, name: str, alias: str, version: int | str) -> Record:
        """Let `alias` stand for a version: requests may name it, and `champion` is what they get by default.

        `version`, here and in the verbs below: a number or another alias.
        """
        return self._send(calls.alias(name, alias, version))

    def unalias(self, name: str, alias: str) -> None:
        self._send(calls.unalias(name, alias))

    def load(self, name: str, version: int | str | None = None) -> Record:
        """Load a version (the newest); returns when it is ready."""
        return self._send(calls.load(name, version))

    def unload(self, name: str, version: int | str | None = None) -> Record:
        """Unload a version (or all of them); returns when its requests are answered and it is gone."""
        return self._send(calls.unload(name, version))

    def delete(self, name: str, version: int | str | None = None) -> None:
        """Delete a version that no alias stands for, or the whole model with all of them and its aliases."""
        self._send(calls.delete(name, version))

    def tag(self, name: str, version: int | str, tags: Mapping[str, str]) -> Record:
        """Replace a version's tags."""
        return self._send(calls.tag(name, version, tags))

    def whoami(self) -> Record:
        """Name, owner, role, model patterns and grants of the key in use."""
        return self._send(calls.whoami())

    # --- deployments ---

    def deployment(self, name: str) -> Record:
        """How a model is to run: replicas, max_replicas, cpus, gpus, accelerator; revision 0 where nothing was set."""
        return self._send(calls.deployment(name))

    def deploy(
        self,
        name: str,
        *,
        replicas: int | None = None,
        max_replicas: int | None = None,
        cpus: float | None = None,
        gpus: float | None = None,
        accelerator: str | None = None,
    ) -> Record:
        """Say how a model is to run; what is not named stays as it is. Returns the deployment; workers make it so.

        Each loaded version gets `replicas` at least and as many as demand asks for up to `max_replicas`, which rises
        along where only the former is named. `cpus`: cores that one replica is placed by. `gpus`: devices of one: a
        share (0.25) or whole ones. `accelerator`: their type in Ray's words (H200, L4). Raises Conflict where somebody
        else changed it at the same time.
        """
        wish = Wish(replicas, max_replicas, cpus, gpus, accelerator)
        return self._run(deploying.deploy(name, wish), None)

    def reset_deployment(self, name: str) -> Record:
        """Let a model run by the defaults again; returns them."""
        return self._send(calls.reset_deployment(name))

    def status(self) -> Record:
        """How everything stands: models, versions, replicas and where they run, queues, gateways."""
        return self._send(calls.status())

    # --- sending ---

    def _run(self, flow: Flow[T], timeout: float | None) -> T:
        """Drive a flow: send each call it yields and give it the answer, all within `timeout`."""
        end = time.monotonic() + (self._timeout if timeout is None else timeout)
        try:
            call = next(flow)
            while True:
                try:
                    result = self._send(call, end - time.monotonic())
                except PenstockError as error:
                    call = flow.throw(error)
                else:
                    call = flow.send(result)
        except StopIteration as stop:
            found: T = stop.value
            return found

    def _send(self, call: Call[T], allowed: float | None = None) -> T:
        """Send a call, once more where its budget permits, and read the answer."""
        allowed = time_of(call, self._timeout) if allowed is None else allowed
        end = time.monotonic() + allowed
        url = target_of(self.config, call).url
        self._budget.earn()
        while True:
            left = max(0.001, end - time.monotonic())
            try:
                answer = answer_of(self._http.send(request_of(self._http, self.config, call, left)))
            except httpx.HTTPError as error:
                raise failure_of(error, url) from error
            pause = self._budget.wait(call, answer, end - time.monotonic())
            if pause is None:
                return call.read(calls.check(answer, url))
            time.sleep(pause)


class Keys:
    """API keys; needs a key of the role admin."""

    def __init__(self, client: Client) -> None:
        self._send = client._send

    def create(
        self,
        name: str,
        *,
        role: str = "predict",
        owner: str | None = None,
        models: Sequence[str] = ("*",),
        grants: Sequence[str] = (),
        expires_in_s: float | None = None,
    ) -> Record:
        """A new key: its record and, under "key", the secret, which is shown this once.

        `role`: predict, deploy, admin or observe. `models`: patterns of the models it may see. `grants`: "code" lets it
        push models that carry code. `owner`: the tenant it counts for, by default its name.
        """
        return self._send(calls.create_key(name, role, owner, models, grants, expires_in_s))

    def list(self) -> list[Record]:
        return self._send(calls.keys())

    def revoke(self, key_id: str) -> None:
        """Make a key worthless, within seconds."""
        self._send(calls.revoke_key(key_id))
