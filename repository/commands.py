"""The one writer of desired state: versions, aliases, deployments, what is loaded, keys. Control API and V2 call it.

There are no transactions: a command is a few one-record writes, each compared and set on the record's revision, in
an order that leaves the store whole wherever it stops. Artifacts come before the records that name them and go after
them; an alias is written first and then its version is touched, so that a deletion that looked before sees it.
Every method raises Unavailable when the store is away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import structlog
from msgspec.structs import replace

from core.errors import Conflict, InvalidRequest, NotFound, PenstockError, PermissionDenied, Unavailable
from core.identity import ADMIN, CODE, DEPLOY, PREDICT, Principal, new_key
from core.names import CHAMPION, NAME, check_alias, check_model
from core.settings import Settings
from repository.access import check_gift, check_key, covers
from repository.catalog import Catalog
from repository.changes import Changes, unknown
from repository.deployments import check_deployment
from repository.manifest import Manifest, check, check_tags, max_batch_of, signature_of
from repository.records import (
    ALWAYS,
    AUTO,
    CODE_FORMATS,
    LOADING,
    NEVER,
    READY,
    UNAVAILABLE,
    UNLOADING,
    Alias,
    ApiKey,
    Deployment,
    Signature,
    Version,
    VersionState,
)
from repository.signature import batches, check_batched, check_signature, completed, warmup_sizes
from repository.store import Artifacts, Store
from repository.wanted import wanted
from repository.watch import Watch

log = structlog.get_logger(__name__)

SLACK_S = 5.0
"""Seconds that a worker gets beyond its own time limits, to say so itself."""
HELD = frozenset({READY, LOADING, UNLOADING})
"""States of a version that a worker still has."""


Served = Callable[[str, int, int], Awaitable[None]]
"""(model, version, revision of the repository): returns when every gateway knows of it, or does not in a while."""


Followed = Callable[[int], Awaitable[None]]
"""(revision of the repository): likewise, whatever has changed."""


async def _at_once(model: str, version: int, revision: int) -> None: ...


async def _known(revision: int) -> None: ...


class IssuedKey(NamedTuple):
    key: ApiKey
    secret: str
    """The whole key; it cannot be had again."""


class Commands:
    """`clock` gives Unix seconds, for the times that records show."""

    def __init__(
        self,
        store: Store,
        artifacts: Artifacts,
        settings: Settings,
        watch: Watch,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._changes = Changes(store)
        self._artifacts = artifacts
        self._settings = settings
        self._watch = watch
        self._clock = clock
        self._clearing: set[asyncio.Task[None]] = set()
        self.served: Served = _at_once
        """Where requests come in elsewhere: waits until they would be served."""
        self.followed: Followed = _known
        """Where keys are looked at elsewhere: waits until they are looked at as they are now."""

    # --- pushing --------------------------------------------------------------------------------------------------

    async def push(self, model: str, manifest: Manifest, chunks: AsyncIterator[bytes], principal: Principal) -> Version:
        """Store an artifact and record it as the next version; workers then load it. `settle` waits for that.

        Raises InvalidRequest, PermissionDenied, NotFound (a model that the key does not cover), TooLarge, and what
        `chunks` raises; nothing is stored then.
        """
        self.check_push(model, manifest, principal)
        digest, size = await self._artifacts.put(chunks, self._settings.max_push_bytes)
        example = ""
        try:
            if not size:
                raise InvalidRequest("the artifact is empty")
            example = await self._put_example(manifest)
            version = await self._record(model, manifest, digest, size, example, principal.owner)
        except Unavailable:
            self._later(self._drop(digest, example))
            raise
        except BaseException:
            await self._drop(digest, example)
            raise
        await self._watch.wrote()
        log.info(
            "pushed", model=model, version=version.version, format=version.format, digest=digest, by=principal.name
        )
        return version

    def check_push(self, model: str, manifest: Manifest, principal: Principal) -> None:
        """Everything that can be refused before a byte of the artifact is read."""
        principal.require(DEPLOY, model)
        check_model(model)
        check(manifest, self._settings)
        if manifest.format not in CODE_FORMATS:
            return
        if not self._settings.code_allowed:
            raise PermissionDenied(
                f"this server accepts no {manifest.format} models: they carry code (PENSTOCK_ALLOW_CODE)"
            )
        if CODE not in principal.grants:
            raise PermissionDenied(f"{manifest.format} models carry code: your key needs the grant {CODE!r}")
        if not manifest.allow_code:
            raise InvalidRequest(f"allow_code: {manifest.format} models carry code; say so with --allow-code")

    async def settle(self, version: Version, alias: str | None = None, timeout: float | None = None) -> VersionState:
        """After a push: wait until the version is ready, set its alias, let versions beyond the number kept go.

        Raises InvalidRequest with the reason when it does not load, Unavailable when `timeout` seconds pass before.
        """
        wait = self._settings.load_timeout_s + SLACK_S if timeout is None else timeout
        until = _now() + wait
        state = await self.wait_state(version.model, version.version, version.attempt, wait)
        if state.state != READY and await self._superseded(version):
            return await self._settle_late(version, alias, wait)
        return await self._settled(state, alias, until)

    async def _superseded(self, version: Version) -> bool:
        """Whether a higher version came before this one could be tried, so that the rule no longer wants it."""
        now = await self._changes.find(version.model, version.version)
        return now.wanted == AUTO and (version.model, version.version) not in wanted(self._watch.catalog)

    async def _settle_late(self, version: Version, alias: str | None, wait: float) -> VersionState:
        """Have a superseded version loaded all the same, so that its pusher learns whether it works."""
        asked = await self._changes.change(version, lambda now: replace(now, wanted=ALWAYS, attempt=now.attempt + 1))
        try:
            until = _now() + wait
            state = await self.wait_state(version.model, version.version, asked.attempt, wait)
            return await self._settled(state, alias, until)
        finally:
            await self._changes.change(asked, lambda now: replace(now, wanted=AUTO) if now.wanted == ALWAYS else now)
            self._watch.poke()

    async def _settled(self, state: VersionState, alias: str | None, until: float) -> VersionState:
        _or_refuse(state)
        if alias is not None:
            await self.set_alias(state.model, alias, state.version)
        await self._until_served(state, until)
        await self._keep_few(state.model)
        return state

    async def _until_served(self, state: VersionState, until: float) -> None:
        """Who is told that a version is ready may ask for it at once, wherever requests come in. `until`: when patience
        with a store that is away ends."""
        catalog = await self._watch.refresh_within(until - _now())
        await self.served(state.model, state.version, catalog.revision)

    async def complete_signature(self, version: Version, signature: Signature, max_batch: int) -> Version:
        """What a worker found at the first load, where the push did not tell it. Returns the version as it now is.

        `max_batch` decides where the push left it open (-1: by the default, where every first dimension is
        variable). Raises InvalidRequest where what was found contradicts what was given.
        """
        check_signature(signature, self._settings.max_tensors)

        def complete(now: Version) -> Version:
            whole = completed(now.signature, signature)
            if now.max_batch >= 0 and max_batch >= 0 and now.max_batch != max_batch:
                raise InvalidRequest(f"max_batch: {now.max_batch} was asked for, the model allows {max_batch}")
            rows = max(now.max_batch, max_batch)
            if rows < 0:
                rows = self._settings.default_max_batch if batches(whole) else 0
            check_batched(whole, rows)
            return replace(now, signature=whole, max_batch=rows, warmup=warmup_sizes(rows, now.warmup))

        whole = await self._changes.change(version, complete)
        await self._watch.wrote()
        return whole

    async def _put_example(self, manifest: Manifest) -> str:
        if manifest.example is None:
            return ""
        text = msgspec.json.encode({"inputs": manifest.example.inputs})
        digest, _ = await self._artifacts.put(_once(text), len(text))
        return digest

    async def _record(
        self, model: str, manifest: Manifest, digest: str, size: int, example: str, owner: str
    ) -> Version:
        deadline, bound = manifest.default_deadline_ms, manifest.queue_bound
        rows = max_batch_of(manifest, self._settings)
        version = await self._store.insert(
            Version(
                model=model,
                version=await self._changes.next_number(model),
                owner=owner,
                format=manifest.format,
                digest=digest,
                size=size,
                entry=manifest.entry,
                signature=signature_of(manifest),
                example=example,
                max_batch=rows,
                default_deadline_ms=self._settings.default_deadline_ms if deadline is None else deadline,
                queue_bound=self._settings.queue_bound if bound is None else bound,
                warmup=manifest.warmup if rows < 0 else warmup_sizes(rows, manifest.warmup),
                tags=manifest.tags,
                created=self._clock(),
            )
        )
        if not {digest, example or digest}.issubset(await self._artifacts.digests()):
            await self._store.delete(version)
            raise Conflict("the artifact was deleted along with another version meanwhile: push again")
        return version

    # --- aliases and tags -----------------------------------------------------------------------------------------

    async def set_alias(self, model: str, alias: str, version: int | str) -> Alias:
        """Point `alias` at a version, which workers then keep loaded.

        Where the model is being served the version is loaded first, so that requests by the alias never wait for it.
        Done when requests go by it wherever they come in. Raises NotFound for an unknown version, InvalidRequest with
        the reason where it does not load.
        """
        check_alias(alias)
        target = await self._changes.find(model, version)
        await self._ready_first(target)
        written = await self._changes.put(Alias(model=model, alias=alias, version=target.version))
        try:
            await self._changes.change(target, _by_rule_again, touch=True)
        except NotFound:
            with suppress(Conflict):
                await self._store.delete(written)
            raise
        await self._until_routed(await self._watch.wrote(), target.model, target.version)
        return written

    async def _ready_first(self, target: Version) -> None:
        catalog = await self._watch.refresh()
        served = any(catalog.ready(target.model, number) for number in catalog.versions.get(target.model, ()))
        if served and target.wanted != NEVER and not catalog.ready(target.model, target.version):
            await self.load(target.model, target.version)

    async def delete_alias(self, model: str, alias: str) -> None:
        there = await self._store.get(Alias, f"{model}/{alias}")
        if there is None:
            raise NotFound(f"model {model[:128]!r} has no alias {alias[:128]!r}")
        await self._store.delete(there)
        catalog = await self._watch.wrote()
        if model in catalog.versions:
            await self._until_routed(catalog, model, self._by_rule(catalog, model)[0].version)

    async def _until_routed(self, catalog: Catalog, model: str, version: int) -> None:
        """Who is told that an alias has changed may ask by it at once; what is not served needs no waiting for."""
        if catalog.ready(model, version):
            await self.served(model, version, catalog.revision)

    async def set_tags(self, model: str, version: int | str, tags: dict[str, str]) -> Version:
        """Replace the tags of a version."""
        check_tags(tags)
        found = await self._changes.find(model, version)
        changed = await self._changes.change(found, lambda now: replace(now, tags=tags))
        await self._watch.wrote()
        return changed

    # --- deployments ----------------------------------------------------------------------------------------------

    async def set_deployment(self, deployment: Deployment, seen: int | None = None) -> Deployment:
        """Say how the versions of a model are to run; workers then make it so. `seen`: the revision that the caller
        changes (0: the defaults), whatever it is where None.

        Raises InvalidRequest naming the field, NotFound, Conflict where another revision was `seen`.
        """
        check_deployment(deployment)
        _versions(await self._watch.refresh(), deployment.model)
        written = await self._put_deployment(deployment, seen)
        if not await self._store.count(Version, deployment.model):
            await self.delete_deployment(deployment.model)
            raise NotFound(f"unknown model {deployment.model!r}")
        await self._watch.wrote()
        log.info("deployment_set", model=deployment.model, replicas=written.replicas, at_most=written.max_replicas)
        return written

    async def _put_deployment(self, deployment: Deployment, seen: int | None) -> Deployment:
        if seen is None:
            return await self._changes.put(deployment)
        return await (
            self._store.replace(replace(deployment, revision=seen)) if seen else self._store.insert(deployment)
        )

    async def delete_deployment(self, model: str) -> Deployment:
        """Have the versions of a model run by the defaults again; returns these. Raises NotFound."""
        gone = await self._changes.drop(Deployment, model) if NAME.match(model) else None
        catalog = await self._watch.wrote()
        if gone is None:
            _versions(catalog, model)
        return Deployment(model=model)

    # --- loading --------------------------------------------------------------------------------------------------

    async def load(self, model: str, version: int | str | None = None, timeout: float | None = None) -> VersionState:
        """Have a version loaded, or what the model's rule wants, and wait for it; a failed one is tried again.

        A version that the rule does not want stays loaded from now on. Raises NotFound, InvalidRequest with the
        reason when it does not load, Unavailable after `timeout` seconds.
        """
        named = None if version is None else await self._changes.find(model, version)
        catalog = await self._watch.refresh()
        targets = self._by_rule(catalog, model) if named is None else [named]
        asked = [await self._want(catalog, target) for target in targets]
        await self._watch.wrote()
        wait = self._settings.load_timeout_s + SLACK_S if timeout is None else timeout
        until = _now() + wait
        states = [await self.wait_state(model, each.version, each.attempt, wait) for each in asked]
        for state in states:
            _or_refuse(state)
            await self._until_served(state, until)
        return states[0]

    async def unload(self, model: str, version: int | str | None = None, timeout: float | None = None) -> VersionState:
        """Have a version let go, or all of the model's, until it is loaded by name; wait until it is done.

        Raises NotFound, and Unavailable after `timeout` seconds.
        """
        catalog = await self._watch.refresh()
        targets = _versions(catalog, model) if version is None else [await self._changes.find(model, version)]
        for target in targets:
            if target.wanted != NEVER:
                await self._changes.change(target, lambda now: replace(now, wanted=NEVER))
        await self._watch.wrote()
        due = wanted(catalog)
        return [await self._wait_gone(target, (model, target.version) in due, timeout) for target in targets][-1]

    async def wait_state(self, model: str, version: int, attempt: int, timeout: float) -> VersionState:
        """What became of a load: the state once it is READY or UNAVAILABLE for that attempt. A store that is away for
        less than `timeout` seconds does not end the wait.

        Raises Unavailable after `timeout` seconds, NotFound when the version is deleted meanwhile.
        """

        def settled(catalog: Catalog) -> VersionState | None:
            if catalog.version(model, version) is None:
                raise unknown(model, version)
            state = catalog.states.get((model, version))
            done = state is not None and state.attempt >= attempt and state.state in (READY, UNAVAILABLE)
            return state if done else None

        until = _now() + timeout
        await self._watch.refresh_within(timeout)
        state = await self._watch.until(settled, until - _now())
        if state is None:
            raise Unavailable(f"version {version} of model {model!r} is not ready after {timeout:g} s, it still loads")
        return state

    def _by_rule(self, catalog: Catalog, model: str) -> list[Version]:
        """The versions that stay loaded unless told otherwise; first the one that a request without a version gets."""
        versions = {version.version: version for version in _versions(catalog, model)}
        aliases = catalog.aliases.get(model, {})
        first = aliases.get(CHAMPION, max(versions))
        return [versions[number] for number in dict.fromkeys((first, max(versions), *aliases.values()))]

    async def _want(self, catalog: Catalog, version: Version) -> Version:
        """Mark a version as wanted, and raise its attempt unless it is ready or on its way already."""
        place = (version.model, version.version)
        by_rule = version.version in {each.version for each in self._by_rule(catalog, version.model)}
        state = catalog.states.get(place)
        under_way = state is None or state.attempt < version.attempt or state.state in (READY, LOADING)
        if place in wanted(catalog) and under_way:
            return version

        def ask(now: Version) -> Version:
            mark = AUTO if by_rule else ALWAYS
            return replace(now, wanted=mark, attempt=now.attempt + 1)

        return await self._changes.change(version, ask)

    async def _wait_gone(self, version: Version, due: bool, timeout: float | None) -> VersionState:
        """`due`: it was to be loaded, so a worker will say something of it even if none has yet."""
        place = (version.model, version.version)

        def gone(catalog: Catalog) -> VersionState | None:
            state = catalog.states.get(place)
            if state is None and (not due or catalog.version(*place) is None):
                return VersionState(model=version.model, version=version.version, state=UNAVAILABLE, reason="unloaded")
            return None if state is None or state.state in HELD else state

        wait = self._settings.load_timeout_s + self._settings.drain_timeout_s + SLACK_S if timeout is None else timeout
        state = await self._watch.until(gone, wait)
        if state is None:
            raise Unavailable(f"version {version.version} of model {version.model!r} is not unloaded after {wait:g} s")
        return state

    # --- deleting -------------------------------------------------------------------------------------------------

    async def delete_version(self, model: str, version: int | str) -> None:
        """Unload a version and forget it, its artifact too unless another version has the same.

        Raises NotFound, and Conflict while an alias points at it.
        """
        await self._delete(await self._changes.find(model, version))
        await self._until_followed()

    async def delete_model(self, model: str) -> None:
        """Delete every version and alias; the next push still gets a new number.

        Raises NotFound, and Conflict where an alias is set meanwhile: what it points at stays.
        """
        versions = _versions(await self._watch.refresh(), model)
        for alias in await self._store.find(Alias, model):
            with suppress(Conflict):
                await self._store.delete(alias)
        for version in versions:
            await self._delete(version)
        await self._until_followed()

    async def _until_followed(self) -> None:
        """Whoever is told that something is gone, or given, finds it so wherever requests come in."""
        await self.followed((await self._watch.wrote()).revision)

    async def _delete(self, version: Version) -> None:
        if (refused := await self._aliased(version)) is not None:
            raise refused
        if (await self._watch.refresh()).state(version.model, version.version) in HELD:
            await self.unload(version.model, version.version)
        await self._changes.forget(version, lambda: self._aliased(version))
        state = await self._store.get(VersionState, version.key)
        if state is not None:
            await self._store.delete(state)
        if not await self._store.count(Version, version.model):
            await self._changes.drop(Deployment, version.model)
        await self._drop(version.digest, version.example)
        log.info("deleted", model=version.model, version=version.version)

    async def _aliased(self, version: Version) -> Conflict | None:
        aliases = [a.alias for a in await self._store.find(Alias, version.model) if a.version == version.version]
        if not aliases:
            return None
        named = " and ".join(map(repr, aliases))
        return Conflict(
            f"version {version.version} of model {version.model!r} is {named}: move or delete the alias first"
        )

    async def _keep_few(self, model: str) -> None:
        """Delete the oldest versions beyond the number kept that nobody points at or wants loaded."""
        catalog = self._watch.catalog
        versions = catalog.versions.get(model, {})
        keep = {number for _, number in wanted(catalog)} | set(catalog.aliases.get(model, {}).values())
        spare = [version for number, version in versions.items() if number not in keep]
        retired = spare[: max(0, len(versions) - self._settings.versions_kept)]
        with suppress(Unavailable):  # for the next time
            for version in retired:
                await self._retire(version)
            if retired:
                await self._watch.wrote()

    async def _retire(self, version: Version) -> None:
        try:
            await self._delete(version)
        except PenstockError as error:
            log.warning("not_retired", model=version.model, version=version.version, error=error.message)
            if isinstance(error, Unavailable):
                raise

    async def sweep(self) -> None:
        """Clear away what crashes left: partial uploads, artifacts without a record, records without their version.

        As long as a version is damaged, what might be its own stays.
        """
        await self._artifacts.sweep()
        for digest in await self._artifacts.digests():
            await self._drop(digest)
        records: list[VersionState | Alias] = [*await self._store.find(VersionState), *await self._store.find(Alias)]
        deployments, versions = await self._store.find(Deployment), await self._store.find(Version)
        if len(versions) < await self._store.count(Version):
            return
        known = {(version.model, version.version) for version in versions}
        for record in records:
            if (record.model, record.version) not in known:
                await self._store.delete(record)
        for deployment in deployments:
            if not await self._store.count(Version, deployment.model):
                await self._store.delete(deployment)

    async def _drop(self, *digests: str) -> None:
        """Delete those artifacts that no version names; none while there is a damaged one, which may name any."""
        for digest in filter(None, digests):

            async def used(digest: str = digest) -> bool:
                versions = await self._store.find(Version)
                named = any(digest in (version.digest, version.example) for version in versions)
                return named or len(versions) < await self._store.count(Version)

            if not await used():
                await self._artifacts.delete(digest, used)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Clear up without the caller, who has waited for an absent repository once; a sweep does what remains."""
        task = asyncio.create_task(_tried(work))
        self._clearing.add(task)
        task.add_done_callback(self._clearing.discard)

    # --- keys -----------------------------------------------------------------------------------------------------

    async def create_key(
        self,
        name: str,
        *,
        role: str = PREDICT,
        owner: str | None = None,
        patterns: tuple[str, ...] = ("*",),
        grants: tuple[str, ...] = (),
        expires_in_s: float | None = None,
        giver: Principal | None = None,
    ) -> IssuedKey:
        """A new key; its owner is its name where none is given. `giver` cannot give more than it has. Done when the key
        is known wherever requests come in.

        Raises InvalidRequest naming the field, PermissionDenied.
        """
        owner = name if owner is None else owner
        check_key(name, owner, role, patterns, grants, expires_in_s)
        if giver is not None:
            check_gift(giver, patterns, grants)
        made, now = new_key(), self._clock()
        record = ApiKey(
            key_id=made.key_id,
            name=name,
            owner=owner,
            role=role,
            patterns=patterns,
            grants=tuple(sorted(set(grants))),
            digest=made.digest.hex(),
            created=now,
            expires=0.0 if expires_in_s is None else now + expires_in_s,
        )
        key = await self._store.insert(record)
        await self._until_followed()
        return IssuedKey(key, made.secret)

    async def first_key(self) -> IssuedKey | None:
        """The key that a new repository starts with: admin, with every grant. None where there are keys already."""
        if await self._store.count(ApiKey):
            return None
        return await self.create_key("first", role=ADMIN, owner="admin", grants=(CODE,))

    async def keys(self, seer: Principal) -> list[ApiKey]:
        """The keys that reach no further than `seer`'s own."""
        return [key for key in await self._store.find(ApiKey) if covers(seer, key.patterns)]

    async def revoke_key(self, key_id: str, revoker: Principal) -> ApiKey:
        """Make a key worthless, for ever: done when it is so wherever requests come in. Raises NotFound, also for keys
        that reach further than the revoker's."""
        key = await self._store.get(ApiKey, key_id) if NAME.match(key_id) else None
        if key is None or not covers(revoker, key.patterns):
            raise NotFound(f"unknown key {key_id[:64]!r}: keys go by the ids that `penstock keys list` shows")
        revoked = await self._changes.revoke(key)
        await self._until_followed()
        return revoked


def _versions(catalog: Catalog, model: str) -> list[Version]:
    """All of a model's, in ascending order. Raises NotFound where there is none."""
    versions = catalog.versions.get(model)
    if not versions:
        raise NotFound(f"unknown model {model[:128]!r}")
    return list(versions.values())


def _now() -> float:
    """In seconds of the event loop."""
    return asyncio.get_running_loop().time()


def _or_refuse(state: VersionState) -> VersionState:
    if state.state != READY:
        raise InvalidRequest(f"version {state.version} of model {state.model!r} did not load: {state.reason}")
    return state


def _by_rule_again(version: Version) -> Version:
    """What an alias wants needs no other reason to be wanted."""
    return replace(version, wanted=AUTO) if version.wanted == ALWAYS else version


async def _tried(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except PenstockError as error:
        log.info("not_cleared", error=error.message)


async def _once(text: bytes) -> AsyncIterator[bytes]:
    yield text
