"""The servers themselves, as tests get them: each does what it is there for."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import psutil
import pymongo
import pytest
from aio_pika.exceptions import AMQPException
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from prometheus_client import CollectorRegistry, Gauge, start_http_server
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from server.servers import engine, processes
from tests.services import RAY_CPUS, ROOT, Broker, Own, Servers, fresh_vhost
from tests.toxics import Toxics
from tests.watched import Metrics, Traces

PATIENCE_S = 20
CHECK = ("promtool", "check", "config")
RULES = """\
groups:
  - name: some
    rules:
      - {alert: Away, expr: up == 0, for: 1m}
"""


async def echoed(url: str, body: bytes = b"a batch") -> bytes:
    """A message sent to a queue of this broker and fetched again."""
    connection = await aio_pika.connect(url, timeout=PATIENCE_S)
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("q", durable=True)
        await channel.default_exchange.publish(aio_pika.Message(body), "q")
        message = await queue.get(timeout=PATIENCE_S)
        await message.ack()
        return message.body


async def test_the_broker_carries_messages(amqp_url: str) -> None:
    assert await echoed(amqp_url) == b"a batch"


async def test_tests_do_not_meet_at_the_broker(servers: Servers) -> None:
    """Each has a virtual host: what one leaves in a queue is not in another's of that name; gone it is gone."""
    with fresh_vhost(servers) as first, fresh_vhost(servers) as second:
        connection = await aio_pika.connect(first)
        async with connection:
            channel = await connection.channel()
            await channel.declare_queue("q", durable=True)
            await channel.default_exchange.publish(aio_pika.Message(b"mine"), "q")
        assert await echoed(second, b"other") == b"other"
    with pytest.raises(AMQPException):
        await aio_pika.connect(first)


async def test_the_broker_knows_no_guest(amqp_url: str) -> None:
    """The user that every RabbitMQ is born with is not there."""
    _, _, host = amqp_url.rpartition("@")
    with pytest.raises(AMQPException):
        await aio_pika.connect(f"amqp://guest:guest@{host.partition('/')[0]}/")


def test_documents_are_kept(mongo_url: str) -> None:
    """MongoDB's protocol: the URL's path is this test's database, empty at first."""
    client: MongoClient[dict[str, Any]] = MongoClient(mongo_url)
    with client:
        models = client.get_default_database()["models"]
        assert models.count_documents({}) == 0
        models.insert_one({"_id": "digits", "revision": 1})
        found = models.find_one_and_update({"_id": "digits", "revision": 1}, {"$inc": {"revision": 1}})
        assert found == {"_id": "digits", "revision": 1}


async def test_a_link_is_cut_held_and_mended(amqp_url: str, toxiproxy: Toxics) -> None:
    """Cut, nobody connects; held, a connection is made that says nothing; mended, all is as before."""
    link = toxiproxy.link(amqp_url)
    assert await echoed(link.url) == b"a batch"
    link.cut()
    with pytest.raises((OSError, AMQPException)):
        await aio_pika.connect(link.url)
    link.mend()
    link.hold()
    with pytest.raises((TimeoutError, OSError, AMQPException)):
        await aio_pika.connect(link.url, timeout=0.5)
    link.mend()
    assert await echoed(link.url) == b"a batch"


async def test_a_link_delays_throttles_and_breaks(amqp_url: str, toxiproxy: Toxics) -> None:
    """A delay in each direction, a rate, and an end after so many bytes."""
    link = toxiproxy.link(amqp_url)
    loop = asyncio.get_running_loop()
    link.latency(100)
    started = loop.time()
    assert await echoed(link.url) == b"a batch"
    assert loop.time() - started > 0.6, "at least three round trips"
    link.mend()
    link.bandwidth(200)
    started = loop.time()
    assert await echoed(link.url, bytes(100_000)) == bytes(100_000)
    assert loop.time() - started > 0.7, "100 kB at 200 kB/s, twice"
    link.mend()
    link.limit(50_000)
    with pytest.raises((OSError, AMQPException, asyncio.CancelledError, TimeoutError)):
        await echoed(link.url, bytes(100_000))


async def test_a_paused_broker_is_silent_and_comes_back(broker: Broker) -> None:
    broker.pause()
    with pytest.raises((TimeoutError, OSError, AMQPException)):
        await aio_pika.connect(broker.url, timeout=0.5)
    broker.resume()
    assert await echoed(broker.url) == b"a batch"


async def test_a_memory_alarm_blocks_publishers(broker: Broker) -> None:
    """No confirm comes while it is on."""
    connection = await aio_pika.connect(broker.url)
    async with connection:
        channel = await connection.channel()
        await channel.declare_queue("alarmed", durable=True)
        broker.memory_alarm(True)
        sent = asyncio.create_task(channel.default_exchange.publish(aio_pika.Message(b"x"), "alarmed"))
        done, _ = await asyncio.wait([sent], timeout=1)
        assert not done
        broker.memory_alarm(False)
        await asyncio.wait_for(sent, PATIENCE_S)


async def test_a_stopped_application_comes_back(broker: Broker) -> None:
    broker.stop_app()
    with pytest.raises((OSError, AMQPException)):
        await aio_pika.connect(broker.url, timeout=PATIENCE_S)
    broker.start_app()
    assert await echoed(broker.url) == b"a batch"


async def test_a_killed_broker_comes_back(broker: Broker) -> None:
    """kill -9 and a start: same URL."""
    broker.kill()
    with pytest.raises((OSError, AMQPException)):
        await aio_pika.connect(broker.url)
    broker.start()
    assert await echoed(broker.url) == b"a batch"


async def test_a_broker_that_was_stopped_has_its_messages(broker: Broker) -> None:
    """What is durable outlives a stop and a start."""
    connection = await aio_pika.connect(broker.url)
    async with connection:
        channel = await connection.channel()
        await channel.declare_queue("durable", durable=True)
        kept = aio_pika.Message(b"kept", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(kept, "durable")
    broker.stop()
    broker.start()
    connection = await aio_pika.connect(broker.url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("durable", passive=True)
        assert (await queue.get(timeout=PATIENCE_S)).body == b"kept"


def test_a_database_goes_away_and_comes_back(own_mongo: Own) -> None:
    """Paused it answers nothing, killed and started it has its documents."""
    client: MongoClient[dict[str, Any]] = MongoClient(own_mongo.url, serverSelectionTimeoutMS=1000 * PATIENCE_S)
    with client:
        client["kept"]["c"].insert_one({"_id": 1})
        own_mongo.pause()
        with pymongo.timeout(0.5), pytest.raises(PyMongoError):
            client["kept"]["c"].find_one({"_id": 1})
        own_mongo.resume()
        assert client["kept"]["c"].find_one({"_id": 1}) == {"_id": 1}
        own_mongo.kill()
        own_mongo.start()
        assert client["kept"]["c"].find_one({"_id": 1}) == {"_id": 1}


def test_a_driver_joins_the_cluster(ray_address: str) -> None:
    """With the token that the environment names, and what the head offers."""
    import ray

    assert os.environ["RAY_ADDRESS"] == ray_address
    ray.init(address=ray_address, log_to_driver=False)
    try:
        assert ray.cluster_resources()["CPU"] == RAY_CPUS  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()


def test_a_span_arrives(jaeger: Traces) -> None:
    """Sent by OTLP over gRPC, it is found by its service's name; Jaeger has no spans of its own."""
    service = f"test-{uuid.uuid4().hex}"
    exporter = OTLPSpanExporter(endpoint=jaeger.otlp, insecure=True)
    provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("test").start_as_current_span("infer") as span:
        span.set_attribute("model", "digits")
    provider.shutdown()
    assert processes.wait_until(lambda: service in jaeger.services(), PATIENCE_S)
    ((found,),) = [trace["spans"] for trace in jaeger.of(service)]
    assert found["operationName"] == "infer"
    assert found["traceID"] == f"{span.get_span_context().trace_id:032x}"
    assert {"key": "model", "type": "string", "value": "digits"} in found["tags"]
    assert not [name for name in jaeger.services() if name.startswith("jaeger")]


def test_what_left_its_address_is_scraped(prometheus: Metrics) -> None:
    """Within two intervals of discovery and scraping, with its labels; without its file no more."""
    registry = CollectorRegistry()
    Gauge("penstock_test", "Of this test.", registry=registry).set(42)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    mine = uuid.uuid4().hex
    with prometheus.scraped(server.server_port, process=mine):
        expression = f'penstock_test{{process="{mine}"}}'
        assert processes.wait_until(lambda: list(prometheus.value(expression).values()) == [42.0], PATIENCE_S)
        ((health, error),) = [
            (target["health"], target["lastError"])
            for target in prometheus.targets()
            if target["labels"]["process"] == mine
        ]
        assert (health, error) == ("up", "")
    assert processes.wait_until(
        lambda: all(target["labels"]["process"] != mine for target in prometheus.targets()), PATIENCE_S
    )
    server.shutdown()
    server.server_close()
    thread.join(PATIENCE_S)


def test_prometheus_reads_its_rules(servers: Servers, prometheus: Metrics, tmp_path: Path) -> None:
    """Its configuration is one, with rules and targets beside it too; so says its own tool."""
    running = servers.place("prometheus").running
    assert running is not None
    if running.container:
        inside = engine.run_inside(running.container, *CHECK, "/etc/prometheus/prometheus.yml")
        assert "SUCCESS" in inside
        return
    written = (servers.place("prometheus").folder / "prometheus.yml").read_text()
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "some.yml").write_text(RULES)
    (tmp_path / "one.json").write_text('[{"targets": ["127.0.0.1:9464"], "labels": {"process": "gateway"}}]')
    (tmp_path / "prometheus.yml").write_text(written.replace(str(prometheus.folder), str(tmp_path)))
    told = subprocess.run([*CHECK, tmp_path / "prometheus.yml"], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "1 rule files found" in told.stdout
    assert "WARNING" not in told.stdout


def test_prometheus_understands_what_compose_gives_it(servers: Servers, prometheus: Metrics) -> None:
    """deploy/prometheus.yml; the file of the key is the container's."""
    given = (ROOT / "deploy/prometheus.yml").read_text()
    file = prometheus.folder / "composed.yml"
    file.write_text(given)
    running = servers.place("prometheus").running
    assert running is not None
    if running.container:
        inside = engine.run_inside(running.container, *CHECK, "--syntax-only", f"/etc/prometheus/metrics/{file.name}")
        assert "SUCCESS" in inside
        return
    told = subprocess.run([*CHECK, "--syntax-only", file], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("name", ["jaeger", "prometheus"])
def test_all_that_listens_is_on_loopback(servers: Servers, name: str) -> None:
    """Every port of all its processes, started natively."""
    url = servers.url(name)
    place = servers.place(name)
    running = place.running
    assert running is not None
    if running.container:
        return
    listening = {
        connection.laddr
        for process in processes.family(running.birth, place.mark)
        for connection in psutil.Process(process.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
    }
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert urlsplit(url).port in {address.port for address in listening}
