"""Services for attacks, and what those have in common."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest

from serve.desk import Desk
from serve.edge import auth, connections
from serve.transfer.pace import Patience
from serve.transfer.uploads import UploadLimits, Uploads
from tests.serve.socketed import Live, live, tokens

CLIP = b"not a video, which only a runner finds out"
JSON = {"content-type": "application/json"}
RAW = {"content-type": "video/mp4"}
URL = "https://example.com/a.mp4"
A, B = "token-of-a-0123456789", "token-of-b-0123456789"
MINE, OTHER = {"x-token": A}, {"x-token": B}
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


def impatient(desk: Desk) -> Desk:
    """Uploads of at most 1 MiB, from clients that may be silent for half a second."""
    patience = Patience(silence_seconds=0.5, bytes_per_second=1000, window_seconds=0.5, total_seconds=5)
    limits = UploadLimits(max_bytes=1 << 20, unannounced_bytes=1 << 19, files=3, free_bytes=0, patience=patience)
    return replace(desk, uploads=Uploads(limits), image_uploads=Uploads(limits))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("service")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections.Connection, "linger_seconds", 0.4)
        with live(folder, change=impatient, on_demand_wait_s=0.2, on_demand_megapixels=1) as running:
            yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("guarded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auth, "_STRANGERS_PER_MINUTE", 1e9)
        with live(folder, known=tokens(a=A, b=B)) as running:
            yield running


@pytest.fixture
def one(here: Live) -> Iterator[str]:
    """Id of a task that is queued."""
    answer = here.ask("POST", "/v1/tasks", CLIP, RAW)
    assert answer.status == 202, answer.text
    yield str(answer.json()["id"])
    here.ask("DELETE", f"/v1/tasks/{answer.json()['id']}")


def operations(here: Live) -> list[tuple[str, str]]:
    """Method and path of every operation, with an id that nothing has."""
    paths = here.ask("GET", "/openapi.json").json()["paths"]
    nobody = "0b9d6c1e-4f0a-4c39-9f0a-0d9c9d1f7c11"
    return [(method.upper(), path.replace("{task_id}", nobody)) for path, found in paths.items() for method in found]


def lingering(here: Live) -> int:
    """Connections that the service holds, after those that are ending have had a moment."""
    time.sleep(0.2)
    mine = psutil.Process().net_connections("tcp")
    return sum(each.laddr.port == here.port and each.status == psutil.CONN_ESTABLISHED for each in mine)
