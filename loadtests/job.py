"""One job: the server and the echoes started, every scenario run, every budget's rounds brought home."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import penstock

from loadtests import closed_loop, open_loop
from loadtests.budgets import Budget, Budgets
from loadtests.closed_loop import Aim, Pair, Plan
from loadtests.disturbances import meanwhile
from loadtests.judge import Verdict, judged
from loadtests.open_loop import Bench, on_exact_timers
from loadtests.processes import COMMAND, ECHO, GRPC_ECHO, Echo, Server, clock, echo, server, with_tenants
from loadtests.seen import Round
from loadtests.shapes import OPEN_LOOP, SCENARIOS
from loadtests.targets import GrpcTarget, HttpTarget, Target

TENANTS = ("red", "green", "blue")
Seen = list[tuple[Budget, list[Round]]]
"""Each budget with its rounds."""


class Site(NamedTuple):
    """What a scenario is run on."""

    server: Server
    echo: Echo
    grpc_echo: Echo

    def echo_of(self, transport: str) -> Echo:
        return self.grpc_echo if transport == "grpc" else self.echo


class Job(NamedTuple):
    """`command`: what starts a server; `hurry`: divides the time of every scenario; `say`: told of each step."""

    budgets: Budgets
    scenarios: Sequence[str]
    results: Path
    command: Sequence[str | Path] = (COMMAND, "up")
    hurry: float = 1.0
    say: Callable[[str], None] = print

    def run(self) -> Seen:
        """Every scenario that has budgets, those of one process first. Raises RuntimeError."""
        self.results.mkdir(parents=True, exist_ok=True)
        asked = [name for name in self.scenarios if self.budgets.of(name)]
        seen: Seen = []
        for distributed in (False, True):
            names = [name for name in asked if SCENARIOS[name].distributed is distributed]
            if names:
                with self._site(distributed) as site:
                    for name in names:
                        self.say(f"{name}: {self.seconds(name):g} s for each of its parts …")
                        seen += self.scenario(name, site)
        return seen

    def verdicts(self) -> tuple[Seen, list[Verdict]]:
        """Run, judge, and give what is breached a second chance: only what is so twice counts, for the machine has
        neighbours. The figures of a breach are those of the second run."""
        seen = self.run()
        verdicts = judged(seen)
        doubted = {str(verdict.budget): verdict.budget for verdict in verdicts if not verdict.kept}
        if doubted:
            self.say(f"once more, to be sure: {'; '.join(doubted)}")
            again = self._replace(budgets=self.budgets._replace(budgets=tuple(doubted.values())))
            second = {(str(verdict.budget), verdict.name): verdict for verdict in judged(again.run())}
            verdicts = [each if each.kept else second[str(each.budget), each.name] for each in verdicts]
        return seen, verdicts

    def seconds(self, scenario: str) -> float:
        return SCENARIOS[scenario].seconds / self.hurry

    @contextlib.contextmanager
    def _site(self, distributed: bool) -> Iterator[Site]:
        self.say("starting a server in its production shape …" if distributed else "starting a server …")
        command = [*self.command, "--distributed"] if distributed else self.command
        with (
            tempfile.TemporaryDirectory(prefix="penstock-load-") as folder,
            server(Path(folder) / "home", command) as running,
            echo(ECHO) as rest,
            echo(GRPC_ECHO) as grpc,
        ):
            _check_served(running, self.budgets)
            yield Site(with_tenants(running, TENANTS), rest, grpc)

    def scenario(self, name: str, site: Site) -> Seen:
        budgets = self.budgets.of(name)
        if name == OPEN_LOOP:
            return [(budget, on_exact_timers(self._open_loop(budget, site))) for budget in budgets]
        plan = Plan(name, self.seconds(name), tuple(self._pair(budget, site) for budget in budgets), "")
        with meanwhile(SCENARIOS[name]._replace(seconds=self.seconds(name)), site.server):
            seen = closed_loop.run(plan, self.results / f"{name}.html")
        return [(budget, seen[str(budget)]) for budget in budgets]

    async def _open_loop(self, budget: Budget, site: Site) -> list[Round]:
        unit = site.echo_of(budget.transport)
        ours = Bench(_target(budget, site.server.url, site.server.grpc, site), clock(site.server.pid))
        bare = f"127.0.0.1:{unit.port}"
        beside = Bench(_target(budget, f"http://{bare}", bare, site), clock(unit.pid))
        try:
            return await open_loop.measure(
                ours, beside, budget.load, self.seconds(OPEN_LOOP), _late_after(self.budgets, budget)
            )
        finally:
            await ours.target.close()
            await beside.target.close()

    def _pair(self, budget: Budget, site: Site) -> Pair:
        name, transport = f"{budget.model} {budget.transport}", budget.transport
        unit = f"127.0.0.1:{site.echo_of(transport).port}"
        addresses = (site.server.grpc, unit) if transport == "grpc" else (site.server.url, f"http://{unit}")
        ours, beside = (
            Aim(title, transport, budget.model, address, site.server.keys, int(budget.load))
            for title, address in zip((name, f"echo of {name}"), addresses, strict=True)
        )
        return Pair(str(budget), _late_after(self.budgets, budget), ours, beside)


def _target(budget: Budget, url: str, address: str, site: Site) -> Target:
    if budget.transport == "grpc":
        return GrpcTarget(address, budget.model, site.server.keys)
    return HttpTarget(url, budget.transport, budget.model, site.server.keys)


def _late_after(budgets: Budgets, budget: Budget) -> float:
    """Seconds."""
    return budgets.objectives[budget.model].late_after_ms / 1e3


def _check_served(running: Server, budgets: Budgets) -> None:
    with penstock.connect(running.url, api_key=running.admin, control=running.control) as ps:
        served = {str(model["name"]) for model in ps.models()}
    if missing := sorted({budget.model for budget in budgets.budgets} - served):
        raise RuntimeError(f"the budgets name models that the server does not have: {', '.join(missing)}")
