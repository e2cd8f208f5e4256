"""Writes ``crd.json`` beside itself: the dashboard, for Grafana 10 or newer.  A test holds the two against each other.

``make dashboards`` runs it.
"""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueColorMode, LegendDisplayMode, LegendPlacement, VizOrientation
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)

FILE = Path(__file__).with_name("crd.json")
_SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
_ON_HOST = 'instance=~"$instance"'
_OF_TARGET = f'{_ON_HOST},target=~"$target"'
_BAD_AT_ONE = ((None, "green"), (1, "red"))

Query = tuple[str, str]
"""PromQL, and the legend of its series."""


def _thresholds(steps: tuple[tuple[float | None, str], ...]) -> dashboard.ThresholdsConfig:
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(
        [Threshold(value=value, color=color) for value, color in steps])


def _query(query: Query, name: str, *, instant: bool) -> prometheus.Dataquery:
    expression, legend = query
    built = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(name)
    return built.instant() if instant else built


def _quantiles(metric: str, labels: str) -> list[Query]:
    buckets = f"sum by (le) (rate({metric}_bucket{{{labels}}}[$__rate_interval]))"
    return [(f"histogram_quantile({share}, {buckets})", legend) for share, legend in ((0.5, "p50"), (0.99, "p99"))]


def _number(title: str, unit: str, query: Query, steps: tuple[tuple[float | None, str], ...] = ((None, "green"),),
            ) -> stat.Panel:
    return (stat.Panel().title(title).unit(unit).datasource(_SOURCE).height(4).span(4).thresholds(_thresholds(steps))
            .color_mode(BigValueColorMode.BACKGROUND if len(steps) > 1 else BigValueColorMode.VALUE)
            .orientation(VizOrientation.AUTO).reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
            .with_target(_query(query, "A", instant=True)))


def _graph(title: str, meaning: str, unit: str, *queries: Query) -> timeseries.Panel:
    panel = (timeseries.Panel().title(title).description(meaning).unit(unit).datasource(_SOURCE).height(8).span(12)
             .min(0).fill_opacity(10).legend(common.VizLegendOptions().display_mode(LegendDisplayMode.LIST)
                                             .placement(LegendPlacement.BOTTOM).show_legend(show_legend=True)))
    for name, query in zip("ABCD", queries, strict=False):
        panel = panel.with_target(_query(query, name, instant=False))
    return panel


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (dashboard.QueryVariable(name).label(label).datasource(_SOURCE).query(query).multi(multi=True)
            .include_all(include_all=True).all_value(".*").refresh(VariableRefresh.ON_TIME_RANGE_CHANGED))


def _glance(board: dashboard.Dashboard) -> dashboard.Dashboard:
    return (
        board.with_row(dashboard.Row("At a glance"))
        .with_panel(_number("Daemons that answer", "short", (f'sum(up{{job="crd",{_ON_HOST}}})', ""),
                            ((None, "red"), (1, "green"))))
        .with_panel(_number("Targets", "short", (f"sum(crd_targets{{{_ON_HOST}}})", "")))
        .with_panel(_number("Longest wait for an image", "s", (
            f"max(time() - (crd_checkpoint_due_since_timestamp_seconds{{{_OF_TARGET}}} > 0)) or vector(0)", ""),
            ((None, "green"), (300, "orange"), (900, "red"))))
        .with_panel(_number("Failed within an hour", "short", (
            f'sum(increase(crd_checkpoints_total{{{_OF_TARGET},result=~"failed|refused"}}[1h]))', ""), _BAD_AT_ONE))
        .with_panel(_number("Restarts that wait", "short", (f"sum(crd_restart_queue_length{{{_ON_HOST}}})", "")))
        .with_panel(_number("Damage found within a day", "short", (
            f"sum(increase(crd_scrub_errors_total{{{_ON_HOST}}}[1d]))", ""), _BAD_AT_ONE)))


def _checkpoints(board: dashboard.Dashboard) -> dashboard.Dashboard:
    return (
        board.with_row(dashboard.Row("Checkpoints"))
        .with_panel(_graph("Checkpoints", "By how they ended.", "cps", (
            f"sum by (result) (rate(crd_checkpoints_total{{{_OF_TARGET}}}[$__rate_interval]))", "{{result}}")))
        .with_panel(_graph("Age of the newest image", "Of each target that has one.", "s", (
            f"time() - (crd_last_checkpoint_success_timestamp_seconds{{{_OF_TARGET}}} > 0)",
            "{{target}} {{instance}}")))
        .with_panel(_graph("Stop time", "From freeze to thaw; half of the stops are shorter than p50, all but one in a "
                           "hundred shorter than p99.", "s", *_quantiles("crd_checkpoint_stop_seconds", _OF_TARGET)))
        .with_panel(_graph("Duration", "From the request until the image is in the catalog.", "s",
                           *_quantiles("crd_checkpoint_duration_seconds", _OF_TARGET)))
        .with_panel(_graph("Failures by reason", "Error codes; crctl targets has the sentence.", "cps", (
            f"sum by (reason) (rate(crd_checkpoint_failures_total{{{_OF_TARGET}}}[$__rate_interval])) or vector(0)",
            "{{reason}}")))
        .with_panel(_graph("Lag of the schedule", "How late checkpoints begin.", "s",
                           *_quantiles("crd_schedule_lag_seconds", _ON_HOST)))
        .with_panel(_graph("Under way", "Checkpoints that run or wait for a worker.", "short", (
            f"sum by (instance) (crd_checkpoints_running{{{_ON_HOST}}})", "{{instance}}"))))


def _archive(board: dashboard.Dashboard) -> dashboard.Dashboard:
    rates = [(f"sum(rate({name}_total{{{_OF_TARGET}}}[$__rate_interval]))", legend) for name, legend in (
        ("crd_checkpoint_memory_bytes", "memory read"), ("crd_image_bytes", "images"),
        ("crd_image_stored_bytes", "stored"))]
    return (
        board.with_row(dashboard.Row("Archive"))
        .with_panel(_graph("Bytes", "What was read, what that makes as images, and what of it had to be stored.", "Bps",
                           *rates))
        .with_panel(_graph("Size and room", "What the archive holds, and what it or its spool has room for.", "bytes",
                           (f"crd_archive_bytes{{{_ON_HOST}}}", "held {{store}}"),
                           (f"crd_archive_free_bytes{{{_ON_HOST}}}", "free {{store}}")))
        .with_panel(_graph("Images", "Of all targets.", "short", (
            f"crd_archive_images{{{_ON_HOST}}}", "{{store}}")))
        .with_panel(_graph("Scrub", "How long ago an image was last read and checked.", "s", (
            f"time() - (crd_last_scrub_timestamp_seconds{{{_ON_HOST}}} > 0)", "{{instance}}"))))


def _restarts(board: dashboard.Dashboard) -> dashboard.Dashboard:
    return (
        board.with_row(dashboard.Row("Restarts"))
        .with_panel(_graph("Requests", "By how they ended, and how many wait.", "short", (
            f"sum by (result) (increase(crd_restart_requests_total{{{_ON_HOST}}}[$__rate_interval]))", "{{result}}"),
            (f"sum(crd_restart_queue_length{{{_ON_HOST}}})", "in the queue")))
        .with_panel(_graph("Duration", "From the claim of a request until its tasks run.", "s",
                           *_quantiles("crd_restart_duration_seconds", _ON_HOST))))


def build() -> str:
    """Return the dashboard as JSON text."""
    board = (
        dashboard.Dashboard("crd").uid("crd").tags(["crd"]).refresh("30s").time("now-6h", "now").timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("source").label("Prometheus").type("prometheus"))
        .with_variable(_variable("instance", "Host", 'label_values(up{job="crd"}, instance)'))
        .with_variable(_variable("target", "Target",
                                 'label_values(crd_checkpoints_total{instance=~"$instance"}, target)')))
    for row in (_glance, _checkpoints, _archive, _restarts):
        board = row(board)
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(build(), encoding="utf-8")
