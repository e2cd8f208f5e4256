"""The metrics of one target: its numbers, and their text as of the last event.

prometheus_client needs a millisecond and 30 KiB for what a target has; with thousands of them a scrape would take
seconds, and hold up the event loop.  So a target keeps plain numbers, and its text is made when they change: a scrape
only puts texts together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

RESULTS = ("ok", "failed", "skipped", "refused")
STOP_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
DURATION_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)

FAMILIES = (
    ("crd_checkpoints_total", "counter", "Checkpoints, by how they ended"),
    ("crd_checkpoint_failures_total", "counter", "Checkpoints that failed or were refused, by error code"),
    ("crd_checkpoint_stop_seconds", "histogram", "How long targets were stopped"),
    ("crd_checkpoint_duration_seconds", "histogram", "How long checkpoints took"),
    ("crd_checkpoint_memory_bytes_total", "counter", "Memory read"),
    ("crd_image_bytes_total", "counter", "Images, as streams"),
    ("crd_image_stored_bytes_total", "counter", "Images, as stored"),
    ("crd_last_checkpoint_success_timestamp_seconds", "gauge", "When the last good image was taken, 0 if never"),
    ("crd_checkpoint_due_since_timestamp_seconds", "gauge",
     "Since when the schedule waits for an image, 0 if it does not"),
)
"""Name, type and meaning, in the order of ``TargetMetrics.texts``."""


@dataclass(slots=True)
class Histogram:
    """Counts values by the smallest bound that is not below them; the last count has none."""

    bounds: tuple[float, ...]
    counts: list[int]
    total: float = 0.0

    @classmethod
    def of(cls, bounds: tuple[float, ...]) -> Histogram:
        """Make an empty one."""
        return cls(bounds, [0] * (len(bounds) + 1))

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def text(self, name: str, labels: str) -> str:
        """Return its series."""
        lines, so_far = [], 0
        for bound, count in zip((*map(float, self.bounds), "+Inf"), self.counts, strict=True):
            so_far += count
            lines.append(f'{name}_bucket{{le="{bound}",{labels}}} {so_far}\n')
        return "".join(lines) + f"{name}_sum{{{labels}}} {self.total}\n{name}_count{{{labels}}} {so_far}\n"


@dataclass(slots=True)
class TargetMetrics:
    """Everything begins with 0, so that the first event is an increase.

    Attributes:
        name: of the target; empty for processes that belong to none.
        engine: that takes its images.
        texts: the series of each of ``FAMILIES``; replaced as a whole, since another thread reads it.
    """

    name: str
    engine: str
    results: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(RESULTS, 0)))
    failures: Counter[str] = field(default_factory=Counter)
    stop_seconds: Histogram = field(default_factory=lambda: Histogram.of(STOP_BUCKETS))
    duration_seconds: Histogram = field(default_factory=lambda: Histogram.of(DURATION_BUCKETS))
    memory_bytes: int = 0
    image_bytes: int = 0
    stored_bytes: int = 0
    last_success: float = 0.0
    due_since: float = 0.0
    texts: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        self.render()

    def render(self) -> None:
        """Bring the texts up to date."""
        target = f'target="{self.name}"'  # names, results and codes have no character that would need an escape
        results = [f'{FAMILIES[0][0]}{{engine="{self.engine}",result="{result}",{target}}} {count}\n'
                   for result, count in self.results.items()]
        failures = [f'{FAMILIES[1][0]}{{reason="{reason}",{target}}} {count}\n'
                    for reason, count in self.failures.items()]
        numbers = (self.memory_bytes, self.image_bytes, self.stored_bytes, self.last_success, self.due_since)
        self.texts = tuple(text.encode() for text in (
            "".join(results), "".join(failures), self.stop_seconds.text(FAMILIES[2][0], target),
            self.duration_seconds.text(FAMILIES[3][0], target),
            *(f"{name}{{{target}}} {number}\n" for (name, _, _), number in zip(FAMILIES[4:], numbers, strict=True))))
