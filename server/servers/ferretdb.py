"""MongoDB's protocol: FerretDB on SQLite, built from `deploy/services/ferretdb`; in a container MongoDB itself."""

from __future__ import annotations

from typing import ClassVar

from server.servers.base import Container, Launch, Say, Server
from server.servers.obtaining import GoProgram
from server.servers.places import Place

PROGRAM = GoProgram("ferretdb", "github.com/FerretDB/FerretDB")


class FerretDB(Server):
    """Without a password: whoever may connect to loopback may read it. The container asks for none either."""

    name: ClassVar[str] = "mongo"
    title: ClassVar[str] = "MongoDB"
    variable: ClassVar[str] = "PENSTOCK_MONGO_URL"
    image_name: ClassVar[str] = "mongo:8.0.13"
    start_within_s: ClassVar[float] = 60.0

    def version(self) -> str:
        return f"FerretDB {PROGRAM.version}"

    def obtain(self, say: Say, may_install: bool) -> None:
        PROGRAM.build(say)

    def launch(self, place: Place) -> Launch:
        listen = f"127.0.0.1:{place.port('port')}"
        argv = (str(PROGRAM.path), "--listen", listen, "--dir", str(place.inner("data")))
        return Launch(argv, f"mongodb://{listen}/")

    def container(self, place: Place) -> Container:
        port = place.port("port")
        return Container(f"mongodb://127.0.0.1:{port}/", {port: 27017}, volume="/data/db")

    def answers(self, url: str, place: Place) -> bool:
        from pymongo import MongoClient
        from pymongo.errors import PyMongoError

        client: MongoClient[dict[str, object]] = MongoClient(url, serverSelectionTimeoutMS=1000, socketTimeoutMS=2000)
        with client:
            try:
                return bool(client.admin.command("ping").get("ok"))
            except PyMongoError:
                return False
