"""Private database servers of the tests: real binaries, a temporary folder, a socket in it, gone at the end.

Nothing listens on a port, so nothing else on the machine can be in the way or be disturbed. Both count time in a zone
that is far from UTC.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_START_SECONDS = 120.0


class MissingServerError(Exception):
    """The machine does not have the server."""


@contextmanager
def mariadb() -> Iterator[str]:
    """Starts MariaDB; yields the URL of its server, to which `/NAME` of a database is added by `named`."""
    server, install = _binary("mariadbd"), _binary("mariadb-install-db")
    with _folder("mysql") as (folder, user):
        data, socket = folder / "data", folder / "s"
        account = [f"--user={user}"] if user else []
        _run(
            [
                install,
                "--no-defaults",
                f"--datadir={data}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                *account,
            ],
            folder,
            None,  # it changes to the account itself
        )
        options = ["--skip-networking", "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=32M"]
        options += ["--default-time-zone=+08:00", "--performance-schema=off", *account]
        command = [server, "--no-defaults", f"--datadir={data}", f"--socket={socket}", *options]
        with _running(command, folder, None, socket):
            yield f"mysql://root@localhost/{{name}}?unix_socket={socket}"


@contextmanager
def postgresql() -> Iterator[str]:
    """Starts PostgreSQL; as `mariadb`."""
    initdb, server = _binary("initdb"), _binary("postgres")
    with _folder("postgres") as (folder, user):
        data = folder / "data"
        _run([initdb, "-D", str(data), "-U", "troupe", "-A", "trust", "-E", "UTF8", "--no-sync"], folder, user)
        options = ["listen_addresses=", "fsync=off", f"unix_socket_directories={folder}", "timezone=Asia/Shanghai"]
        command = [server, "-D", str(data), *(part for option in options for part in ("-c", option))]
        with _running(command, folder, user, folder / ".s.PGSQL.5432"):
            _await_ready(folder)
            yield f"postgresql://troupe@/{{name}}?host={folder}"


def _await_ready(folder: Path) -> None:
    """PostgreSQL has its socket before it takes connections."""
    import asyncpg

    async def connect() -> None:
        await (await asyncpg.connect(host=str(folder), user="troupe", database="postgres")).close()

    deadline = time.monotonic() + 60
    while True:
        try:
            return asyncio.run(connect())
        except (OSError, asyncpg.PostgresError):
            assert time.monotonic() < deadline, "PostgreSQL does not get ready"
            time.sleep(0.05)


def _binary(name: str) -> str:
    """A program of Debian's packages, which keep some of them out of PATH."""
    places = ["/usr/sbin", *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise MissingServerError(f"{name} is not installed (apt-get install mariadb-server postgresql)")
    return str(Path(found).resolve())


@contextmanager
def _folder(account: str) -> Iterator[tuple[Path, str | None]]:
    """A folder with a short path (sockets allow 107 bytes), and the account to run as; servers refuse to be root."""
    user = account if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="troupe-", dir="/tmp"))
    try:
        if user is not None:
            try:
                os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
            except KeyError as error:
                raise MissingServerError(f"there is no account {user} to run it as") from error
        yield folder, user
    finally:
        shutil.rmtree(folder)


def _run(command: Sequence[str], folder: Path, user: str | None) -> None:
    done = subprocess.run(
        command, cwd=folder, user=user, capture_output=True, text=True, timeout=_START_SECONDS, check=False
    )
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-2000:]} {done.stderr[-2000:]}"


@contextmanager
def _running(command: Sequence[str], folder: Path, user: str | None, socket: Path) -> Iterator[None]:
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, user=user, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not socket.exists():
            text = log.read_text(errors="replace")[-2000:]
            assert process.poll() is None, f"{command[0]} ended: {text}"
            assert time.monotonic() < deadline, f"{command[0]} does not start: {text}"
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
