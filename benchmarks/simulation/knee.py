"""The knee: the highest load at which a deadline is still kept. By formula, and as the simulator has it."""

from __future__ import annotations

from benchmarks.rows import Row
from benchmarks.simulation.device import Device
from benchmarks.simulation.scene import DEVICE, Scene, production

KEPT = 0.99
"""Below the knee this share is answered in time."""


def formula(device: Device, replicas: int, target_s: float, overhead_s: float) -> float:
    """Rows a second: λ = (N/α)·(1 − τ₀(1 + 1/N)/(D − h)), and no more than N full batches at a time.

    An arrival waits for the next of N replicas at most τ(b)/N, then for its own batch τ(b): with the largest b for
    which that is D − h, λ = N·b/τ(b).
    """
    slack = target_s - overhead_s
    fixed, row = device.seconds(0), device.row_s * (1 + device.jitter / 2)
    unbounded = replicas / row * (1 - fixed * (1 + 1 / replicas) / slack)
    return max(0.0, min(unbounded, replicas * device.limit))


def simulated(scene: Scene, steps: int = 6) -> float:
    """Rows a second, by bisection between 0.2 and 1.2 of full batches."""
    low, high = 0.2, 1.2
    for _ in range(steps):
        middle = (low + high) / 2
        if production(scene._replace(load=middle)).good_share >= KEPT:
            low = middle
        else:
            high = middle
    return (low + high) / 2 * scene.device.limit * scene.replicas


LONG = Device(fixed_s=0.005, row_s=0.0005, max_batch=128, jitter=0.05)
"""Its batches are bounded by the deadline, not by their maximum."""
CASES = (
    (DEVICE, 0.1, 1), (DEVICE, 0.1, 4), (DEVICE, 0.1, 8), (DEVICE, 0.05, 1),
    (LONG, 0.1, 1), (LONG, 0.1, 4), (LONG, 0.05, 1), (LONG, 0.05, 4),
)  # fmt: skip
"""Device, deadline in seconds, replicas."""


def rows(requests: int, steps: int) -> list[Row]:
    found = []
    for device, target_s, replicas in CASES:
        scene = Scene(replicas=replicas, target=target_s / device.full_s, requests=requests, device=device)
        expected = formula(device, replicas, target_s, 2 * scene.hop_s + scene.shape.margin_s)
        knee = simulated(scene, steps)
        what = f"knee, N = {replicas}, batches ≤ {device.max_batch}, deadline {1e3 * target_s:g} ms: the formula is off"
        found.append(
            Row(part="knee", what=what, value=100 * abs(expected / knee - 1), unit="% of the simulator", at_most=10,
                details={"formula rows/s": expected, "simulator rows/s": knee})
        )  # fmt: skip
    return found
