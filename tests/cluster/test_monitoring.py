"""Metrics are where the documents say: at Ray's metrics port, in a real Prometheus, in the shipped dashboard."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import tomllib
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.metrics import TABLE, Metric
from cluster.session import Session
from tests.cluster.reporting import JOB, PIN, Everything
from tests.jobs.command import ROOT, wait_until

FOLDER = ROOT / "cluster" / "monitoring"
DASHBOARD = json.loads((FOLDER / "grafana" / "dashboards" / "troupe.json").read_text(encoding="utf-8"))
#: Labels that Ray, or Prometheus, adds to every series.
RAY_LABELS = {"NodeAddress", "WorkerId", "SessionName", "Version", "Component", "job", "instance", "le"}

pytestmark = pytest.mark.ray


def tool(name: str) -> str:
    """The path of a program of Prometheus; the test is skipped without it."""
    return shutil.which(name) or pytest.skip(f"no {name} here; it comes with `apt-get install prometheus`")


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    """Every query of the dashboard, its variables set to everything."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    for variable, value in (("$__rate_interval", "1m"), ("$pin", ".*"), ("$job_id", ".*")):
        found = [query.replace(variable, value) for query in found]
    return found


def named(query: str) -> set[str]:
    """The series that a query names."""
    return set(re.findall(r"\bray_troupe_\w+", query))


def grouped(query: str) -> set[str]:
    """The labels by which a query sums up."""
    return {label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}


def series_of(metric: Metric) -> set[str]:
    """The names under which a metric's series are stored."""
    if metric.kind == "histogram":
        return {f"{metric.exported}_{part}" for part in ("bucket", "count", "sum")}
    return {metric.exported}


def test_documented_metrics_are_those_of_the_table() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(troupe_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    assert rows == [
        (metric.name, metric.kind, ", ".join(f"`{tag}`" for tag in metric.tags), metric.description) for metric in TABLE
    ]


@pytest.mark.parametrize("document", ["metrics.md", "monitoring.md"])
def test_documents_name_only_series_that_exist(document: str) -> None:
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    assert named(text) <= {name for metric in TABLE for name in series_of(metric)}


def test_dashboard_shows_every_metric_and_no_other() -> None:
    shown = {name for query in queries() for name in named(query)}
    assert shown <= {name for metric in TABLE for name in series_of(metric)}
    assert [metric.name for metric in TABLE if not series_of(metric) & shown] == []


def test_dashboard_asks_only_for_tags_that_its_metrics_have() -> None:
    tags = {name: set(metric.tags) | RAY_LABELS for metric in TABLE for name in series_of(metric)}
    for query in queries():
        allowed = set.intersection(*(tags[name] for name in named(query)))
        selectors = "".join(re.findall(r"\{([^}]*)\}", query))
        asked = grouped(query) | set(re.findall(r"(\w+)\s*[=!]", selectors))
        assert asked <= allowed, query


def test_dashboard_s_legends_name_tags_that_the_query_keeps() -> None:
    for panel in panels():
        for target in panel["targets"]:
            kept = {
                label.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(",")
            }
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, panel["title"]


def test_panels_of_the_dashboard_have_places_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_grafana_finds_the_prometheus_that_the_document_starts() -> None:
    source = yaml.safe_load((FOLDER / "grafana" / "datasources" / "troupe.yml").read_text(encoding="utf-8"))
    address = source["datasources"][0]["url"].removeprefix("http://")
    assert f"--web.listen-address={address}" in (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")


def test_everything_that_the_dashboard_needs_is_installed_with_the_package() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["cluster"]
    files = [str(path.relative_to(ROOT / "cluster")) for path in FOLDER.rglob("*") if path.is_file()]
    assert len(files) == 4
    assert [name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []


def test_prometheus_takes_the_configuration() -> None:
    check = [tool("promtool"), "check", "config", str(FOLDER / "prometheus.yml")]
    done = subprocess.run(check, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"query:{i}", "expr": query} for i, query in enumerate(queries())]
    document = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    alarms = re.findall(r"^\| `(.*?ray_troupe.*?)`", document, re.MULTILINE)
    assert len(alarms) == 5
    rules += [{"record": f"alarm:{i}", "expr": alarm} for i, alarm in enumerate(alarms)]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    check = [tool("promtool"), "check", "rules", str(path)]
    done = subprocess.run(check, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def text_of(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return str(answer.read().decode())


def test_everything_that_is_reported_shows_at_ray_s_metrics_port(local_ray: Session) -> None:  # noqa: ARG001
    import ray

    actor: Any = ray.remote(num_cpus=0)(Everything).remote()
    ray.get(actor.ready.remote(), timeout=60)
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def shown() -> set[str]:
        lines = [line for line in text_of(address).splitlines() if f'pin="{PIN}"' in line or f'"{JOB}"' in line]
        others = ("ray_troupe_gpu", "ray_troupe_service")
        lines += [line for line in text_of(address).splitlines() if line.startswith(others)]
        return {name for line in lines for name in named(line.partition("{")[0])}

    wanted = {name for metric in TABLE for name in series_of(metric)}
    wait_until(lambda: wanted <= shown(), "every metric at Ray's metrics port", 90)
    ray.kill(actor)
