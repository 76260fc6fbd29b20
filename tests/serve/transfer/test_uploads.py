"""Uploads: whole files under the server's names, or nothing; bounded in number, size, time and memory."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from cluster.errors import TroupeError
from serve.edge.auth import UploadQuota
from serve.edge.problems import Problem, problem_of
from serve.transfer.multipart import Data, End, MultipartBody, MultipartError, Part, shown_name
from serve.transfer.pace import Patience
from serve.transfer.spool import SpoolError
from serve.transfer.uploads import Upload, UploadLimits, Uploads

VIDEO = bytes(range(256)) * 4096  # 1 MiB
BOUNDARY = "----b0undary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
LIMITS = UploadLimits(max_bytes=4 << 20, unannounced_bytes=2 << 20, free_bytes=0)


def part(field: str, content: bytes, filename: str | None = None, more: str = "") -> bytes:
    name = "" if filename is None else f'; filename="{filename}"'
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"{name}\r\n{more}\r\n'
    return head.encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def in_pieces(body: bytes, size: int = 1 << 16) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


def request_of(
    pieces: list[bytes], headers: dict[str, str], *, gone: bool = False, before: Callable[[], None] = lambda: None
) -> Request:
    """A request whose body comes in these pieces; `gone` breaks off after them."""
    messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.disconnect"} if gone else {"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Message:
        before()
        return messages.pop(0)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


def receive(
    folder: Path,
    pieces: list[bytes],
    headers: dict[str, str] | None = None,
    limits: UploadLimits = LIMITS,
    quota: UploadQuota | None = None,
    **options: bool,
) -> Upload:
    request = request_of(pieces, {"content-type": FORM} if headers is None else headers, **options)  # type: ignore[arg-type]
    return asyncio.run(Uploads(limits).receive(request, folder, quota))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "input"
    folder.mkdir()
    return folder


def refused(folder: Path, *arguments: object, **options: object) -> Problem:
    """The problem that an upload ends with; nothing of it is left."""
    with pytest.raises((Problem, TroupeError, ClientDisconnect)) as error:
        receive(folder, *arguments, **options)  # type: ignore[arg-type]
    assert list(folder.iterdir()) == []
    return problem_of(error.value)


# --- what arrives


@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 16, 1 << 22])
def test_form_arrives_whole_in_pieces_of_any_size(folder: Path, size: int) -> None:
    content = VIDEO if size > 100 else VIDEO[:3000]
    body = part("preset", "质量".encode()) + part("file", content, "跳舞.mp4") + part("empty", b"") + END
    upload = receive(folder, in_pieces(body, size))
    (file,) = upload.files
    assert file.path.read_bytes() == content
    assert (file.path.name, file.field, file.name, file.bytes) == ("input-0", "file", "跳舞.mp4", len(content))
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert upload.fields == {"preset": "质量", "empty": ""}
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_raw_body_is_the_file(folder: Path) -> None:
    (file,) = receive(folder, in_pieces(VIDEO), {"content-type": "video/mp4", "content-length": "1048576"}).files
    assert (file.path.read_bytes(), file.field, file.name) == (VIDEO, "", "")


def test_several_files_keep_their_order(folder: Path) -> None:
    body = part("video", b"v", "a") + part("background", b"b", "a") + END
    limits = UploadLimits(max_bytes=100, files=2, free_bytes=0)
    files = receive(folder, [body], limits=limits).files
    assert [(file.field, file.path.read_bytes()) for file in files] == [("video", b"v"), ("background", b"b")]


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "..\\..\\x",
        "C:\\x",
        "",
        ".",
        "..",
        'a\\"b',
        "input-1",
        "-x",
        "%2e%2e%2f",
        "x" * 900,
    ],
)
def test_name_of_the_client_never_becomes_a_path(folder: Path, name: str) -> None:
    (file,) = receive(folder, [part("file", b"x", name) + END]).files
    assert file.path == folder / "input-0"
    assert [path.name for path in folder.parent.iterdir()] == ["input"]
    assert "/" not in file.name and "\\" not in file.name and len(file.name) <= 200


def test_shown_name_has_nothing_that_alters_a_log() -> None:
    assert shown_name("a\r\nb\x1b[31m\u202egpj.mp4\0") == "ab[31mgpj.mp4"


# --- what is refused


def length(count: int) -> dict[str, str]:
    return {"content-type": "video/mp4", "content-length": str(count)}


def test_announced_size_over_the_limit_is_refused_before_a_byte_is_read(folder: Path) -> None:
    for count in (5 << 20, 10**30):
        request = request_of([], length(count), before=lambda: pytest.fail("was read"))
        with pytest.raises(Problem) as error:
            asyncio.run(Uploads(LIMITS).receive(request, folder))
        assert (error.value.status, error.value.code) == (413, "too_large")


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (length(1), VIDEO * 5, 413),
        (length(1), VIDEO * 4 + b"x", 413),
        ({}, VIDEO * 2 + b"x", 411),
        ({"content-type": "application/json"}, b"{}", 415),
        ({"content-type": "application/x-www-form-urlencoded"}, b"a=b", 415),
        ({"content-length": "1e3"}, b"x", 400),
        ({"content-length": "-1"}, b"x", 400),
        ({}, b"", 422),
    ],
)
def test_raw_body_that_is_not_allowed_is_refused(
    folder: Path, headers: dict[str, str], body: bytes, status: int
) -> None:
    assert refused(folder, in_pieces(body), headers).status == status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"junk", 400),
        (END, 422),
        (part("a", b"x") + END, 422),
        (part("file", b"", "a.mp4") + END, 422),
        (part("file", VIDEO, "a.mp4"), 400),
        (part("file", VIDEO, "a.mp4") + END[:-5], 400),
        (part("file", VIDEO * 2, "a.mp4") + END, 411),
        (part("a", b"x" * (1 << 16)) + part("b", b"x") + END, 400),
        (b"".join(part(f"f{n}", b"x") for n in range(33)) + END, 400),
        (part("file", b"x", "a") + part("file2", b"y", "b") + END, 400),
        (part("file", b"x", "a") + part("file", b"y") + END, 400),
        (part("a", b"x") + part("a", b"y") + END, 400),
        (part("a", b"\xff\xfe") + END, 400),
        (part("a" * 300, b"x") + END, 400),
        (part("file", b"eA==", "a", "Content-Transfer-Encoding: base64\r\n") + END, 400),
        (part("file", b"x", "a", 'Content-Disposition: form-data; name="b"\r\n') + END, 400),
        (part("file", b"x", "a", "X: " + "y" * 100_000 + "\r\n") + END, 400),
        (part("file", b"x", "a", "X: y\r\n" * 1000) + END, 400),
        (b"--" + BOUNDARY.encode() + b"\r\n\r\nx\r\n" + END, 400),
        (part("file", b"x", "a").replace(b"form-data", b"attachment") + END, 400),
        (part("file", b"x", "a").replace(b'"file"', b'"\xff"') + END, 400),
    ],
)
def test_form_that_is_not_as_it_should_be_is_refused(folder: Path, body: bytes, status: int) -> None:
    assert refused(folder, in_pieces(body)).status == status


def test_file_of_a_form_over_the_limit_is_refused_whatever_was_announced(folder: Path) -> None:
    body = part("file", VIDEO * 4 + b"x", "a.mp4") + END
    for count in ("1", str(len(body))):
        assert refused(folder, in_pieces(body), {"content-type": FORM, "content-length": count}).status == 413


@pytest.mark.parametrize("boundary", ["", "; boundary=", '; boundary=""', "; boundary=" + "x" * 71, "; boundary=ä"])
def test_form_without_a_boundary_is_refused(folder: Path, boundary: str) -> None:
    assert refused(folder, [END], {"content-type": f"multipart/form-data{boundary}"}).status == 400


def test_client_that_goes_away_leaves_nothing(folder: Path) -> None:
    assert refused(folder, in_pieces(VIDEO), length(2 << 20), gone=True).code == "disconnected"
    body = part("a", b"x") + part("file", VIDEO, "a.mp4")
    assert refused(folder, in_pieces(body), gone=True).code == "disconnected"


def test_file_that_was_whole_goes_too_when_a_later_part_fails(folder: Path) -> None:
    limits = UploadLimits(max_bytes=4 << 20, files=2, free_bytes=0)
    body = part("a", VIDEO, "a") + part("b", VIDEO, "b")
    assert refused(folder, in_pieces(body), limits=limits).status == 400


def test_full_disk_is_refused_before_anything_is_read(folder: Path) -> None:
    limits = UploadLimits(max_bytes=4 << 20, free_bytes=shutil.disk_usage(folder).free + (1 << 40))
    assert refused(folder, [VIDEO], length(1 << 20), limits).code == "disk_full"


def test_quota_is_counted_by_what_comes_and_refused_by_what_is_announced(folder: Path) -> None:
    quota = UploadQuota(VIDEO.__len__() * 2.5)
    receive(folder, in_pieces(VIDEO), length(1 << 20), quota=quota)
    (folder / "input-0").unlink()
    assert quota.left == 1.5 * (1 << 20)
    assert refused(folder, [], length(2 << 20), quota=quota).code == "upload_quota"
    assert refused(folder, in_pieces(VIDEO * 2), {}, quota=quota).code == "upload_quota"
    assert quota.left < 1 << 16


@pytest.mark.parametrize("pause", [10.0, 0.05])
def test_slow_client_is_given_up(folder: Path, pause: float) -> None:
    patience = Patience(silence_seconds=0.3, bytes_per_second=1000, window_seconds=0.3, total_seconds=5)
    request = request_of([], length(1000))

    async def body() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(pause)

    request.stream = body  # type: ignore[method-assign]
    began = time.monotonic()
    with pytest.raises(Problem) as error:
        asyncio.run(Uploads(UploadLimits(patience=patience, free_bytes=0)).receive(request, folder))
    assert (error.value.status, time.monotonic() - began < 3) == (408, True)
    assert list(folder.iterdir()) == []


def test_disk_that_refuses_is_named_and_leaves_nothing(folder: Path) -> None:
    def full(_file: int, _block: memoryview) -> int:
        raise OSError(28, "No space left on device")

    request = request_of(in_pieces(VIDEO), length(1 << 20))
    with pytest.raises(SpoolError, match="No space left") as error:
        asyncio.run(Uploads(LIMITS, full).receive(request, folder))
    assert problem_of(error.value).status == 507
    assert list(folder.iterdir()) == []


def test_uploads_over_the_number_are_refused_and_a_place_becomes_free_again(folder: Path) -> None:
    gate = threading.Event()

    def held(file: int, block: memoryview) -> int:
        gate.wait(10)
        return os.write(file, block)

    async def run() -> list[object]:
        uploads = Uploads(UploadLimits(max_bytes=4 << 20, at_once=2, free_bytes=0), held)

        async def one(number: int) -> object:
            own = folder / str(number)
            own.mkdir()
            return await uploads.receive(request_of(in_pieces(VIDEO * 2), length(2 << 20)), own)

        first = [asyncio.create_task(one(number)) for number in range(2)]
        await asyncio.sleep(0.1)
        with pytest.raises(Problem) as error:
            await one(2)
        assert (error.value.status, error.value.headers["Retry-After"]) == (429, "5")
        gate.set()
        return [*await asyncio.gather(*first), await one(3)]

    assert [isinstance(upload, Upload) for upload in asyncio.run(run())] == [True] * 3


def test_cancelled_upload_ends_leaves_nothing_and_frees_its_place(folder: Path) -> None:
    async def run(wait: float) -> None:
        uploads = Uploads(UploadLimits(max_bytes=1 << 30, at_once=1, free_bytes=0))
        request = request_of([VIDEO] * 200, length(200 << 20))
        task = asyncio.create_task(uploads.receive(request, folder))
        await asyncio.sleep(wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert list(folder.iterdir()) == []
        await uploads.receive(request_of([b"x"], length(1)), folder)
        (folder / "input-0").unlink()

    for attempt in range(20):
        asyncio.run(run(attempt / 500))


# --- memory


@pytest.fixture
def slow_server(tmp_path: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "tests.serve.transfer.upload_app", str(tmp_path), str(64 << 20), str(1 << 30)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield int(server.stdout.readline())
        finally:
            server.kill()


def asked(port: int, method: str, body: bytes | None = None) -> object:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, "/", body, {"Content-Type": "video/mp4"})
    return json.loads(connection.getresponse().read())


def test_memory_stays_the_same_however_slow_the_disk_is(slow_server: int) -> None:
    """Four uploads of 48 MiB at 64 MiB/s each, on uvicorn: what is not written stays with its senders."""
    deadline = time.monotonic() + 60
    while True:
        try:
            before = asked(slow_server, "GET")
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    body = VIDEO * 48
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(asked(slow_server, "POST", body))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [{"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}] * 4
    after = asked(slow_server, "GET")
    assert isinstance(before, int) and isinstance(after, int)
    print(f"peak memory of the server: {before} KiB idle, {after} KiB with 4 uploads of {len(body) >> 20} MiB")
    assert after - before < 4 * 4 * 1024


# --- hostile bodies


def events_of(pieces: list[bytes]) -> list[Part | Data | End]:
    """Events of a body, data of one part joined."""
    body, found = MultipartBody(FORM), []
    for piece in pieces:
        for event in body.feed(piece):
            if isinstance(event, bytes) and found and isinstance(found[-1], bytes):
                found[-1] += event
            else:
                found.append(event)
    body.finish()
    return ["end" if isinstance(event, End) else event for event in found]  # type: ignore[misc]


def cut(body: bytes, places: list[int]) -> list[bytes]:
    bounds = sorted({0, len(body), *(place % (len(body) + 1) for place in places)})
    return [body[a:b] for a, b in pairwise(bounds)]


tricky = st.one_of(
    st.binary(max_size=60),
    st.lists(
        st.sampled_from([b"\r\n", b"\r", b"\n", b"--", BOUNDARY.encode(), b"\r\n--" + BOUNDARY.encode()[:-1], b"x"]),
        max_size=12,
    ).map(b"".join),
).filter(lambda content: f"--{BOUNDARY}".encode() not in content)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(tricky, st.booleans()), min_size=1, max_size=4), st.lists(st.integers(0, 2000), max_size=12))
def test_well_formed_body_gives_the_same_parts_however_it_is_cut(
    parts: list[tuple[bytes, bool]], places: list[int]
) -> None:
    body = b"".join(part(f"f{n}", content, "a" if file else None) for n, (content, file) in enumerate(parts)) + END
    expected: list[object] = []
    for number, (content, file) in enumerate(parts):
        expected += [Part(f"f{number}", "a" if file else None), *([content] if content else []), "end"]
    assert events_of(cut(body, places)) == expected


mutations = st.lists(st.tuples(st.integers(0, 5000), st.binary(max_size=4), st.integers(0, 40)), max_size=6)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations, st.lists(st.integers(0, 5000), max_size=6), st.booleans())
@example([(0, b"", 0)], [], True)
def test_mutilated_body_is_taken_whole_or_refused_and_leaves_nothing(
    tmp_path: Path, changes: list[tuple[int, bytes, int]], places: list[int], gone: bool
) -> None:
    body = part("preset", b"draft") + part("file", VIDEO[:1500], "a.mp4") + part("n", b"1") + END
    for at, put, drop in changes:
        body = body[: at % len(body)] + put + body[at % len(body) + drop :] or b"x"
    folder = tmp_path / "fuzz"
    folder.mkdir(exist_ok=True)
    try:
        upload = receive(folder, cut(body, places), gone=gone)
    except (Problem, TroupeError, ClientDisconnect) as error:
        assert 400 <= problem_of(error).status < 500
        assert list(folder.iterdir()) == []
    else:
        assert [path.name for path in folder.iterdir()] == [file.path.name for file in upload.files]
        for file in upload.files:
            assert hashlib.sha256(file.path.read_bytes()).hexdigest() == file.sha256
            file.path.unlink()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.text(max_size=60))
def test_any_bytes_under_any_content_type_are_an_error_or_parts(body: bytes, header: str) -> None:
    for content_type in (FORM, f"multipart/form-data; {header}", f'multipart/form-data; boundary="{header}"'):
        try:
            parser = MultipartBody(content_type)
            parser.feed(body)
            parser.finish()
        except MultipartError:
            pass


@pytest.mark.parametrize("unit", [b"\r", b"\r\n", b"\r\n--", b"\r\n--" + BOUNDARY.encode()[:-1], b"-"])
def test_body_made_of_almost_boundaries_is_not_slow(unit: bytes) -> None:
    """The parser runs in the event loop: what it can be made to cost is bounded by seconds for a mebibyte."""
    body = MultipartBody(FORM)
    body.feed(part("file", b"", "a")[:-2])
    began = time.process_time()
    for piece in in_pieces(unit * ((1 << 20) // len(unit))):
        body.feed(piece)
    assert time.process_time() - began < 4
