"""What became of each request: counted in rows, by tenant."""

from __future__ import annotations

from benchmarks.simulation.arrivals import Request
from benchmarks.simulation.clock import SECOND


class Tally:
    """`late` rows were accepted and then not answered by their deadline: answered later, given up, or timed out."""

    __slots__ = ("good", "late", "refused", "sent")

    def __init__(self) -> None:
        self.sent = self.good = self.late = self.refused = 0

    def __repr__(self) -> str:
        return f"<Tally of {self.sent} rows: {self.good} good, {self.late} late, {self.refused} refused>"


class Ledger:
    """Counts those that arrive from `begin` to `end` (nanoseconds), whenever they are answered."""

    def __init__(self, begin: int, end: int) -> None:
        self.begin, self.end = begin, end
        self.tenants: dict[str, Tally] = {}
        self.latencies: list[int] = []
        """Of those answered in time, nanoseconds."""
        self.batches = 0
        self.rows = 0
        """Executed, of all times."""

    def _of(self, request: Request) -> Tally | None:
        if not self.begin <= request.at < self.end:
            return None
        tally = self.tenants.get(request.tenant)
        if tally is None:
            tally = self.tenants[request.tenant] = Tally()
        return tally

    def sent(self, request: Request) -> None:
        if (tally := self._of(request)) is not None:
            tally.sent += request.rows

    def answered(self, request: Request, now: int) -> None:
        """Good or late, by its deadline."""
        if (tally := self._of(request)) is None:
            return
        if request.due and now > request.due:
            tally.late += request.rows
        else:
            tally.good += request.rows
            self.latencies.append(now - request.at)

    def late(self, request: Request) -> None:
        if (tally := self._of(request)) is not None:
            tally.late += request.rows

    def refused(self, request: Request) -> None:
        if (tally := self._of(request)) is not None:
            tally.refused += request.rows

    def ran(self, rows: int) -> None:
        self.batches += 1
        self.rows += rows

    # --- what it comes to -----------------------------------------------------------------------------------------

    @property
    def total(self) -> Tally:
        total = Tally()
        for tally in self.tenants.values():
            total.sent += tally.sent
            total.good += tally.good
            total.late += tally.late
            total.refused += tally.refused
        return total

    @property
    def goodput(self) -> float:
        """Rows a second answered in time."""
        return self.total.good / ((self.end - self.begin) / SECOND)

    @property
    def good_share(self) -> float:
        total = self.total
        return total.good / total.sent if total.sent else 1.0

    @property
    def late_share(self) -> float:
        """Of the accepted."""
        total = self.total
        accepted = total.good + total.late
        return total.late / accepted if accepted else 0.0

    @property
    def mean_latency_s(self) -> float:
        return sum(self.latencies) / len(self.latencies) / SECOND if self.latencies else 0.0

    def latency_s(self, share: float) -> float:
        """The nearest-rank quantile of those in time."""
        ranked = sorted(self.latencies)
        return ranked[min(len(ranked) - 1, int(share * len(ranked)))] / SECOND if ranked else 0.0

    @property
    def mean_batch(self) -> float:
        return self.rows / self.batches if self.batches else 0.0

    def __repr__(self) -> str:
        return f"<Ledger: {self.total!r}>"
