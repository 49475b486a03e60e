"""compose.yaml says what the servers understand: no setting, command, route or port that does not exist."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from penstock.config import NAMES

import gateway.rest
from core.settings import SECRET, Settings
from server.servers.ferretdb import FerretDB
from server.servers.jaeger import LISTENERS, Jaeger
from server.servers.places import Place
from server.servers.prometheus import Prometheus
from server.servers.rabbitmq import RabbitMQ
from tests.deploy.composed import ONE_SHOTS, ROOT, compose, ours, programs, seconds, services

LASTING = sorted(services().keys() - ONE_SHOTS)
RAY = Path(sys.executable).parent / "ray"
PAGES = {"jaeger": (16686,), "prometheus": (9090,)}
"""What it is watched with → where its pages are."""
SERVE_MARGIN_S = 10.0
"""What Serve adds to a replica's drain, and a little more."""


def test_every_setting_exists() -> None:
    """A variable that begins with PENSTOCK_ is a setting's, a secret setting's file, or one that clients read."""
    known = {f"PENSTOCK_{name.upper()}" for name in Settings.model_fields} | set(NAMES.values())
    known |= {f"PENSTOCK_{name.upper()}_FILE" for name in SECRET}
    named = {name for service in services().values() for name in service.get("environment", {})}
    named |= set(re.findall(r"PENSTOCK_\w+(?==)", (ROOT / "deploy/Dockerfile").read_text()))
    used = {name for name in named if name.startswith("PENSTOCK_")}
    assert {"PENSTOCK_AMQP_URL_FILE", "PENSTOCK_HOME", "PENSTOCK_CONTROL"} <= used <= known


@pytest.fixture(scope="module")
def ray_options() -> set[str]:
    """Of `ray start`."""
    told = subprocess.run([RAY, "start", "--help"], capture_output=True, text=True, check=True, timeout=120)
    return set(re.findall(r"--[a-z-]+", told.stdout))


@pytest.mark.parametrize("name", sorted(ours()))
def test_every_command_exists(name: str, ray_options: set[str]) -> None:
    """What a service of ours runs is a command of `penstock`, or `ray start` with options that it has."""
    commands = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["penstock.commands"]
    for program, *words in programs(ours()[name]):
        if program == "penstock":
            assert words[0] in commands
        elif program == "ray":
            assert words[0] == "start"
            assert {word.partition("=")[0] for word in words[1:]} <= ray_options
        else:
            assert (program, words[0]) == ("sh", "/secrets.sh")


def test_proxy_and_pages_are_published_and_on_loopback() -> None:
    """A process listens beyond its container's loopback where the proxy asks it."""
    published = {name: service["ports"] for name, service in services().items() if "ports" in service}
    settings = Settings()
    ports = {"proxy": (settings.http_port, settings.grpc_port, settings.control_port)} | PAGES
    assert published == {name: [f"127.0.0.1:{port}:{port}" for port in each] for name, each in ports.items()}
    for name in ("gateway", "control"):
        assert services()[name]["environment"]["PENSTOCK_HOST"] == "0.0.0.0"


def test_servers_are_on_the_inner_network_alone() -> None:
    """Which nothing outside reaches; what is published is on both."""
    assert compose()["networks"]["inner"]["internal"] is True
    both = {name for name, service in services().items() if "edge" in service.get("networks", [])}
    assert both == {"proxy"} | PAGES.keys()
    assert all("inner" in services()[name]["networks"] for name in services().keys() - {"secrets"})
    assert services()["secrets"]["network_mode"] == "none"


def test_our_containers_write_only_where_they_are_given_room() -> None:
    """Their root is read-only; who keeps state has a volume at PENSTOCK_HOME."""
    for name, service in ours().items():
        assert service["read_only"] is True, name
        if name != "secrets":
            mounted = [volume.rpartition(":")[2] for volume in service["volumes"]]
            assert "/var/lib/penstock" in mounted, name


def test_every_image_is_pinned() -> None:
    """By a version of at least two numbers; the servers' are those that `penstock services` starts."""
    images = {name: service["image"] for name, service in services().items()}
    (python,) = re.findall(r"^ARG PYTHON=(\S+)", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    for image in (*images.values(), python):
        assert re.fullmatch(r"([a-z]+/)?[a-z-]+:v?\d+\.\d+(\.\d+)?(-[a-z-]+)?", image), image
    assert f"{images['rabbitmq']}-management" == RabbitMQ.image_name
    assert images["mongo"] == FerretDB.image_name
    assert images["jaeger"] == Jaeger.image_name
    assert images["prometheus"] == Prometheus.image_name
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {service["image"] for service in ours().values()} == {
        f"penstock-{kind}:{version}" for kind in ("gateway", "workers")
    }


@pytest.mark.parametrize("name", PAGES)
def test_what_it_is_watched_with_gets_little(name: str) -> None:
    """A user who is not root, no capability, a root that it cannot write; no password but the key to scrape with."""
    service = services()[name]
    assert int(service["user"].partition(":")[0]) > 0
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert not [volume for volume in service.get("volumes", []) if "penstock-secrets" in volume]


def test_options_of_what_it_is_watched_with(tmp_path: Path) -> None:
    """Are those that `penstock services` starts them with: bounded in what they keep; of Jaeger's ports those that
    nobody asks are closed to others."""
    started = {}
    for server in (Jaeger(), Prometheus()):
        place = Place(tmp_path / "services", server.name)
        place.make()
        launch = (*Jaeger().launch(place).argv,) if server.name == "jaeger" else server.container(place).arguments
        started[server.name] = {word.partition("=")[0] for word in launch if word.startswith("--")}
        assert {word.partition("=")[0] for word in services()[server.name]["command"]} <= started[server.name]
    told = dict(word.split("=") for word in services()["jaeger"]["command"] if ".host-port=" in word)
    assert {f"--{option}.host-port" for option in LISTENERS.values()} == told.keys()
    open_ports = {name for name, address in told.items() if not address.startswith("127.0.0.1:")}
    assert open_ports == {"--collector.otlp.grpc.host-port", "--query.http-server.host-port"}


@pytest.mark.parametrize("name", sorted(ours().keys() - ONE_SHOTS))
def test_ours_tell_jaeger_and_prometheus(name: str) -> None:
    """Spans go to Jaeger's port of OTLP, metrics are served where Prometheus reaches them."""
    environment = services()[name]["environment"]
    assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://jaeger:4317"
    assert environment["OTEL_EXPORTER_OTLP_PROTOCOL"] == "grpc"
    assert "--collector.otlp.grpc.host-port=:4317" in services()["jaeger"]["command"]
    assert environment["PENSTOCK_METRICS_HOST"] == "0.0.0.0"
    assert environment["PENSTOCK_METRICS_PORT"] == str(Settings().metrics_port)


def test_prometheus_scrapes_every_service_of_ours() -> None:
    """At the first port that metrics are served on; of a node of Ray at sixteen, one for each replica. With the key
    that `setup` leaves, where it leaves it."""
    (job,) = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["scrape_configs"]
    first = Settings().metrics_port
    static = {target for group in job["static_configs"] for target in group["targets"]}
    assert static == {f"{name}:{first}" for name in ("control", "workers")}
    found = {(name, each["port"]) for each in job["dns_sd_configs"] for name in each["names"]}
    nodes = {(name, port) for name in ("ray-head", "ray-worker") for port in range(first, first + 16)}
    assert found == {("gateway", first)} | nodes
    assert {target.partition(":")[0] for target in static} | {name for name, _ in found} == ours().keys() - ONE_SHOTS
    names = {group["labels"]["process"] for group in job["static_configs"]}
    assert names | {rule["replacement"] for rule in job["relabel_configs"]} == {
        "control",
        "workers",
        "gateway",
        "worker",
    }
    *_, option, file = services()["setup"]["command"]
    assert option == "--observe-key"
    assert job["authorization"] == {"credentials_file": f"/run/penstock/{Path(file).name}"}


def test_what_is_built_is_there() -> None:
    """Each image once, by a stage of the Dockerfile; each requirements file it installs from exists, hashed."""
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", dockerfile, re.MULTILINE))
    built = {name: service["build"] for name, service in ours().items() if "build" in service}
    assert sorted(build["target"] for build in built.values()) == ["gateway", "workers"]
    assert {"gateway", "workers"} <= stages
    assert all(ROOT / build["dockerfile"] == ROOT / "deploy/Dockerfile" for build in built.values())
    assert {ours()[name]["image"] for name in built} == {service["image"] for service in ours().values()}
    for file in re.findall(r"--require-hashes -r (?:/src/)?(\S+?)[;\s]", dockerfile):
        assert "--hash=sha256:" in (ROOT / file).read_text()


def test_images_hold_every_package_of_ours_and_nothing_else() -> None:
    """What is copied into the build is what pyproject.toml packages, the client, and what pins the rest."""
    find = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    packages = {pattern.removesuffix("*") for pattern in find["include"]}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert let_in == packages | {"client", "requirements", "pyproject.toml", "README.md", "LICENSE"}


@pytest.mark.parametrize("name", LASTING)
def test_a_lasting_service_is_restarted_and_looked_after(name: str) -> None:
    """It comes back when it ends, and somebody asks whether it works."""
    service = services()[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"


def test_healthchecks_ask_for_routes_that_need_no_key() -> None:
    """At the port that the service itself listens on."""
    asked = {
        name: [urlsplit(word) for word in service["healthcheck"]["test"] if word.startswith("http://")]
        for name, service in services().items()
        if name in LASTING and name not in PAGES
    }
    ports = {name: url.port for name, urls in asked.items() for url in urls}
    settings = Settings()
    assert ports == {"gateway": settings.http_port, "proxy": settings.http_port, "control": settings.control_port}
    assert {url.path for urls in asked.values() for url in urls} <= gateway.rest.PUBLIC


@pytest.mark.parametrize("name", ["ray-head", "ray-worker", "workers"])
def test_healthchecks_of_ray_ask_where_it_listens(name: str) -> None:
    """The ports that `ray start` was told."""
    ray = next(words for words in programs(services()[name]) if words[0] == "ray")
    listening = {word.partition("=")[2] for word in ray if word.startswith(("--port=", "--node-manager-port="))}
    asked = {word for word in services()[name]["healthcheck"]["test"] if word.isdigit()}
    assert asked == listening
    (address,) = {word.partition("=")[2] for word in ray if word.startswith("--address=")} or {"ray-head:6379"}
    assert services()["workers"]["environment"]["RAY_ADDRESS"] == address


def test_services_wait_for_what_they_need() -> None:
    """Nobody waits in a circle; a lasting service is waited for until it is healthy, another until it is done."""
    needs = {name: service.get("depends_on", {}) for name, service in services().items()}
    order = list(TopologicalSorter(needs).static_order())
    assert order[0] == "secrets"
    for needed, how in ((needed, how) for told in needs.values() for needed, how in told.items()):
        done = "service_completed_successfully" if needed in ONE_SHOTS else "service_healthy"
        assert how == {"condition": done}


def test_nobody_is_killed_while_it_drains() -> None:
    """A stop is given longer than the process gives itself."""
    settings = Settings()
    drains = {
        "gateway": settings.stop_timeout_s,
        "control": 2 * settings.drain_timeout_s,
        "ray-worker": settings.drain_timeout_s + SERVE_MARGIN_S,
    }
    for name, longest in drains.items():
        assert seconds(services()[name]["stop_grace_period"]) > longest


def test_replicas_find_what_gateways_find() -> None:
    """Credentials by files that their node has, none in the file itself; one folder of artifacts for all nodes."""
    environment = services()["gateway"]["environment"]
    for name in ("ray-head", "ray-worker", "workers", "setup", "control"):
        for variable in ("PENSTOCK_AMQP_URL_FILE", "PENSTOCK_MONGO_URL_FILE"):
            assert services()[name]["environment"][variable] == environment[variable]
        assert "penstock-secrets:/run/penstock:ro" in services()[name]["volumes"]
    for name in ("ray-head", "ray-worker", "workers"):
        assert services()[name]["environment"]["RAY_AUTH_MODE"] == "token"
    assert "models:/var/lib/penstock" in services()["ray-worker"]["volumes"]


def test_no_password_stands_in_the_file() -> None:
    """They are made at the first start; nothing in the file is one, or a URL that holds one."""
    text = (ROOT / "compose.yaml").read_text()
    assert not re.search(r"(?i)passw(or)?d\s*[:=]\s*[^\s/{]", text)
    assert "@" not in text


def test_every_volume_is_named_and_every_file_exists() -> None:
    """What is mounted is a volume that is declared, a file of this repository, or a folder of the container's own."""
    mounted = [str(volume).split(":") for service in services().values() for volume in service.get("volumes", [])]
    sources = {parts[0] for parts in mounted if len(parts) > 1}
    files = {source for source in sources if source.startswith("./")}
    assert all((ROOT / file).is_file() for file in files)
    assert sources - files == set(compose()["volumes"])


def documented() -> list[dict[str, Any]]:
    text = (ROOT / "docs/deploying.md").read_text()
    return [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def test_documented_overrides_are_of_services_that_exist() -> None:
    """Each yaml block of docs/deploying.md changes services of compose.yaml."""
    assert documented()
    for override in documented():
        assert override["services"].keys() <= services().keys()
