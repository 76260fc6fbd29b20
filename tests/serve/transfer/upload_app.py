"""A uvicorn server of its own process that receives uploads on a slow disk; prints its port, then serves.

Run as `python -m tests.serve.transfer.upload_app FOLDER BYTES_PER_SECOND MAX_BYTES`; `GET /` gives its peak memory in
KiB.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
import uuid
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request

from serve.edge.problems import install
from serve.transfer.uploads import UploadLimits, Uploads


def app(folder: Path, rate: float, max_bytes: int) -> FastAPI:
    def slow(file: int, block: memoryview) -> int:
        time.sleep(len(block) / rate)
        return os.write(file, block)

    app = FastAPI()
    install(app)
    uploads = Uploads(UploadLimits(max_bytes=max_bytes, free_bytes=0), slow)

    @app.post("/")
    async def receive(request: Request) -> dict[str, int | str]:
        own = folder / uuid.uuid4().hex
        own.mkdir()
        (file,) = (await uploads.receive(request, own)).files
        return {"bytes": file.bytes, "sha256": file.sha256}

    @app.get("/")
    async def peak() -> int:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1])

    return app


def main() -> None:
    folder, rate, max_bytes = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    config = uvicorn.Config(app(folder, rate, max_bytes), log_level="error")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
