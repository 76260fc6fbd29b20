"""The service without Ray in processes of its own: `serve` answers HTTP as the ingress does, `work` ends tasks as a
runner does, but makes only a small file of each.

    python -m tests.serve.stand_in serve FOLDER      prints its port, then answers
    python -m tests.serve.stand_in work FOLDER       until it is ended
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path

from cluster.config import Config
from serve.api import create_app
from serve.desk import opened_desk
from serve.edge.auth import Auth
from serve.edge.connections import server_of
from serve.folders import DataFolder
from serve.ingress import DRAIN_SECONDS, listening
from serve.payload import RESULT
from serve.places import data_root, database_url
from serve.store import Store, TaskState
from tests.serve.service import MADE, StandIn, settings

RESULT_OF_ALL = {
    "file": RESULT,
    "media_type": "video/mp4",
    "bytes": len(MADE),
    "sha256": hashlib.sha256(MADE).hexdigest(),
    "frames": 40,
    "damaged": 0,
    "notices": [],
}


def serve(config: Config) -> None:
    """Answers as the ingress would."""
    app = create_app(
        lambda: opened_desk(config, Auth(None), StandIn(), dict, {}), max_requests=config.troupe.service.max_requests
    )
    socket = listening("127.0.0.1", 0)
    socket.listen()  # who comes before it answers waits
    print(socket.getsockname()[1], flush=True)
    server_of(app, drain_seconds=DRAIN_SECONDS).run(sockets=[socket])


async def work(config: Config) -> None:
    """Ends one task after the other."""
    service = config.troupe.service
    data = DataFolder(data_root(service, {}))
    async with Store(database_url(service, {}), connections=1) as store:
        while True:
            claim = await store.claim("stand-in", 600)
            if claim is None:
                await asyncio.sleep(0.05)
                continue
            (data.of(claim.task.id).result / RESULT).write_bytes(MADE)
            assert await store.finish(claim, TaskState.DONE, result=RESULT_OF_ALL, cost={"wall_s": 0, "seconds": {}})
            data.keep_result(claim.task.id)


if __name__ == "__main__":
    chosen = settings(Path(sys.argv[2]))
    serve(chosen) if sys.argv[1] == "serve" else asyncio.run(work(chosen))
