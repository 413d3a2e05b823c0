"""Prometheus and Grafana: the paths and names that Ray itself writes and asks for."""

from pathlib import Path
from typing import Any

import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE, SESSION_LATEST
from ray.dashboard.modules.metrics import metrics_head, templates

FOLDER = Path(__file__).resolve().parents[2] / "infra/monitoring"


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def test_prometheus_reads_the_list_that_ray_writes() -> None:
    ours, theirs = read("prometheus.yml"), yaml.safe_load(templates.PROMETHEUS_YML_TEMPLATE)
    (job,), (their_job,) = ours["scrape_configs"], theirs["scrape_configs"]
    assert list(job) == list(their_job)
    assert ours["global"] == theirs["global"]
    assert job["file_sd_configs"][0]["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]


def test_kubernetes_objects_are_whole_yaml() -> None:
    monitor = read("podmonitor.yaml")
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert {"name", "namespace", "labels"} <= set(monitor["metadata"])
    assert {"selector", "podMetricsEndpoints"} <= set(monitor["spec"])


def test_grafana_has_the_source_that_the_dashboards_ask_for() -> None:
    (source,) = read("grafana/datasource.yaml")["datasources"]
    template = templates.GRAFANA_DATASOURCE_TEMPLATE(
        metrics_head.DEFAULT_PROMETHEUS_NAME, metrics_head.DEFAULT_PROMETHEUS_HOST, {}, {}
    )
    (theirs,) = yaml.safe_load(template)["datasources"]
    assert source == {name: theirs[name] for name in source}


def test_grafana_finds_the_dashboards_where_ray_writes_them() -> None:
    (provider,) = read("grafana/dashboards.yaml")["providers"]
    (theirs,) = yaml.safe_load(
        templates.DASHBOARD_PROVISIONING_TEMPLATE.format(
            dashboard_output_folder=f"/tmp/ray/{SESSION_LATEST}/metrics/grafana/dashboards"
        )
    )["providers"]
    assert provider == theirs
