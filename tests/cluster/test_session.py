"""Starting and joining Ray: the right version, the token, an address that answers, clean standard output."""

from __future__ import annotations

import os
import socket
import time
from importlib import metadata
from pathlib import Path

import pytest

from cluster import session
from cluster.errors import ClusterError, UsageError
from cluster.session import check_ray_version, connect, is_submitted_job, messages_on_stderr, use_token


def test_another_ray_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    check_ray_version()
    monkeypatch.setattr(session, "version", lambda _: "2.61.0")
    with pytest.raises(UsageError, match=r"Ray 2\.61\.0: is not of the 2\.60\.x series .*pip install"):
        check_ray_version()
    assert metadata.version("ray").startswith(session.RAY_SERIES)


def test_stored_token_is_presented_to_a_cluster_that_is_joined(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    local = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    joining = {**local, "RAY_ADDRESS": "10.0.0.1:6379"}
    for environ, mode in ((joining, "token"), ({**joining, "RAY_AUTH_MODE": "disabled"}, "disabled"), (local, None)):
        use_token(environ)
        assert environ.get("RAY_AUTH_MODE") == mode


def test_demanded_token_that_is_not_there_is_refused(tmp_path: Path) -> None:
    environ = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none"), "RAY_ADDRESS": "10.0.0.1:6379"}
    use_token(environ)
    assert "RAY_AUTH_MODE" not in environ
    with pytest.raises(UsageError, match="there is no token at"):
        use_token({**environ, "RAY_AUTH_MODE": "token"})


def test_submitted_job_is_known_by_its_environment() -> None:
    assert is_submitted_job({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"})
    assert not is_submitted_job({})


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that says nothing of Ray, restored afterwards."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.mark.usefixtures("outside")
def test_cluster_that_does_not_answer_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    begun = time.monotonic()
    with pytest.raises(ClusterError, match=f"Ray at {address}: does not answer"), connect():
        pass
    assert time.monotonic() - begun < 30  # Ray alone tries for a minute


@pytest.mark.usefixtures("outside")
def test_address_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(UsageError, match="give host:port as `ray start --head` printed it"), connect():
        pass


@pytest.mark.usefixtures("outside")
def test_ray_that_does_not_start_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def slow(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nAnd much more.")

    ended: list[bool] = []
    monkeypatch.setattr(ray, "init", slow)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(session, "end_descendants", lambda: ended.append(True))
    with pytest.raises(ClusterError) as raised, connect():
        pass
    assert str(raised.value).startswith("Ray: did not start or answer: The current node timed out during startup.; try")
    assert ended == [True]


def test_what_ray_prints_by_itself_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    with messages_on_stderr():
        print("(raylet) a worker died")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "(raylet) a worker died\n")
