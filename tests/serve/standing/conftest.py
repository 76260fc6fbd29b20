"""One service on one Ray for all tests of this folder: whoever comes first brings it up, the last one down."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.standing.live import SECRET, Live, living
from tests.serve.web import WebServer, answer


@pytest.fixture(scope="package")
def receiver() -> Iterator[WebServer]:
    """Takes every webhook."""
    with WebServer(lambda request: answer(request, b"thanks")) as server:
        yield server


@pytest.fixture(scope="package")
def standing(receiver: WebServer) -> Iterator[Live]:
    """The service as the test before left it, at first not up: starting a Ray and its replicas is dear."""
    allowed = {"allow_networks": ["127.0.0.0/8"], "allow_ports": [receiver.port]}
    with living(allowed, TROUPE_WEBHOOK_SECRET=SECRET) as live:
        yield live
        live.down()
