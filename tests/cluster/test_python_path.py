"""A Python whose path has a space in it: Ray itself hands that path to a shell unquoted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_JOB = """
import ray
from cluster.session import connect
with connect(num_cpus=1):
    task = ray.remote(num_cpus=0, runtime_env={"env_vars": {"TROUPE_TEST": "seen"}})
    def value():
        import os
        return os.environ["TROUPE_TEST"]
    print(ray.get(task(value).remote(), timeout=60))
"""


def test_local_ray_starts_workers_when_the_path_of_python_has_a_space(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    root = Path(__file__).resolve().parents[2]
    # The new environment is empty: it borrows this one's packages.
    paths = [str(root), *(path for path in sys.path if path.endswith("-packages"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [folder / "bin" / "python", "-c", _JOB],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "seen", done.stderr[-2000:]
