"""Which repository a server has: MongoDB where a URL is set, else SQLite and files in its own folder."""

from __future__ import annotations

from core.settings import Settings
from repository.artifacts import FileArtifacts
from repository.cache import Cache
from repository.sqlite import SqliteStore
from repository.store import Artifacts, Store


async def open_repository(settings: Settings) -> tuple[Store, Artifacts]:
    """The records and the artifacts; closing the store lets go of both.

    MongoDB is not asked yet: it may be away, and each call says so then. Raises InvalidRequest for a URL that is none,
    Unavailable for an embedded database that cannot be used.
    """
    if not settings.mongo_url:
        store = await SqliteStore.open(settings.home / "repository.sqlite")
        return store, FileArtifacts(settings.home / "artifacts")
    from repository.gridfs import MongoArtifacts  # the driver costs memory that an embedded server need not spend
    from repository.mongo import Mongo, MongoStore, connect

    mongo = Mongo(connect(settings.mongo_url), settings.mongo_database)
    cache = Cache(settings.home / "cache", settings.artifact_cache_bytes)
    return MongoStore(mongo), MongoArtifacts(mongo, cache)
