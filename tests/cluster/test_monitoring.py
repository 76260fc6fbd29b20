"""Metrics are where the documents say: at Ray's metrics port, in a real Prometheus, in the shipped dashboard."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.metrics import TABLE, Metric
from cluster.session import Session
from tests.cluster.reporting import JOB, PIN, Everything
from tests.jobs.command import ROOT, run, wait_until
from tests.media import write_clip

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


@dataclass(frozen=True)
class Cluster:
    """A Ray that was started by its command.

    Attributes:
        environment: in which commands join it.
        discovery: the file in which it names its metrics ports.
    """

    environment: dict[str, str]
    discovery: Path


@contextmanager
def ending(
    arguments: list[str], environment: dict[str, str], log: Path, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A program that runs for the block, and whose descendants end with it, however they detached themselves."""
    mark = uuid.uuid4().hex
    with log.open("w") as output:
        options.setdefault("stdout", output)
        process = subprocess.Popen(
            arguments, env={**environment, "TROUPE_TEST_MARK": mark}, stderr=output, text=True, cwd=ROOT, **options
        )

        def gone() -> bool:
            for pid in (pids := _marked(mark)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return process.poll() is not None and not pids

        try:
            yield process
        finally:
            wait_until(gone, "the program and its descendants to end", 60)


def _marked(mark: str) -> list[int]:
    wanted = f"TROUPE_TEST_MARK={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue  # it ended while we looked
    return found


@pytest.fixture
def prometheus() -> str:
    """Prometheus' path; asked for before Ray is started."""
    return tool("prometheus")


@pytest.fixture
def started_ray(tmp_path: Path) -> Iterator[Cluster]:
    """`ray start` with a token, as docs/cluster.md says, in a folder of its own: other Rays may run on this machine."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "TROUPE_"))}
    environment = {
        **clean,
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2,
        "RAY_free_objects_period_milliseconds": "50",
        "RAY_free_objects_batch_size": "1",
    }
    # Ray's sockets have to have short names.
    with tempfile.TemporaryDirectory(prefix="tm", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray_command = str(Path(sys.executable).with_name("ray"))
        options = ["--port=0", "--dashboard-port=0", "--num-cpus=2", "--disable-usage-stats", f"--temp-dir={folder}"]
        log = tmp_path / "ray.log"
        with ending([ray_command, "start", "--head", "--block", *options], environment, log) as process:
            discovery = Path(folder) / "prom_metrics_service_discovery.json"

            def address() -> str | None:
                assert process.poll() is None, log.read_text()
                found = re.search(r"--address='([\d.:]+)'", log.read_text())
                return found and found.group(1) if discovery.exists() else None

            yield Cluster({**environment, "RAY_ADDRESS": wait_until(address, "Ray to start", 120)}, discovery)


def test_prometheus_scrapes_a_cluster_with_a_pin_and_a_job(
    prometheus: str, started_ray: Cluster, tiny_weights: Path, tmp_path: Path
) -> None:
    config = (FOLDER / "prometheus.yml").read_text(encoding="utf-8")
    changed = config.replace("/tmp/ray/prom_metrics_service_discovery.json", str(started_ray.discovery))
    assert changed != config
    (tmp_path / "prometheus.yml").write_text(changed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def ask(query: str) -> list[dict[str, Any]]:
        address = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            answer = json.loads(text_of(address))
        except OSError:
            return []  # it is starting
        assert answer["status"] == "success", query
        return list(answer["data"]["result"])

    arguments = [
        prometheus,
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    reporting = [sys.executable, "-m", "tests.cluster.reporting"]
    with (
        ending(arguments, dict(os.environ), tmp_path / "prometheus.log"),
        ending(
            reporting,
            started_ray.environment,
            tmp_path / "pin.log",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as pin,
    ):
        assert pin.stdout is not None
        assert pin.stdout.readline() == "reporting\n", (tmp_path / "pin.log").read_text()
        clip = write_clip(tmp_path / "a.mp4", frames=24, rate=12, width=64, height=48).path
        chosen = ("--upscale", "realesr-animevideov3", "--matte", "none", "--target", "2", "--json")
        weights = {"TROUPE_WEIGHTS": str(tiny_weights)}
        ended = run(clip, "-o", tmp_path / "out", *chosen, environment={**started_ray.environment, **weights})
        assert ended.code == 0, ended.output + ended.errors

        # What the job's own pin did, and what a pin reports that has seen everything.
        done = 'ray_troupe_pin_frames_total{model="realesr-animevideov3"}'
        wait_until(lambda: [item["value"][1] for item in ask(done)] == ["24"], "the frames of the job's pin", 90)
        for metric in TABLE:
            for name in series_of(metric):
                wait_until(lambda name=name: ask(name), f"{name} in Prometheus", 90)  # type: ignore[misc]
        assert [item["value"][1] for item in ask(f'ray_troupe_pin_frames_total{{pin="{PIN}"}}')] == ["8"]
        # What the job reported before it ended: all of its frames.
        frames = f'ray_troupe_job_frames_total{{job_id!="{JOB}"}}'
        assert [item["value"][1] for item in wait_until(lambda: ask(frames), "the job's frames")] == ["24"]
        # What the dashboard asks finds something, once there are two scrapes to make a rate of.
        for query in queries():
            wait_until(lambda query=query: ask(query), f"an answer to {query}", 90)  # type: ignore[misc]
