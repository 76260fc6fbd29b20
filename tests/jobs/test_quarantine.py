"""What a pin dies of or hangs on is quarantined after three strikes; nobody else loses anything; `troupe retry`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from actors.model import Step
from cli.main import app
from cluster.config import PinSettings
from jobs.assemble import assemble, row_of
from jobs.ledger import Strike, WorkFolder, read_row, write_row
from jobs.plan import plan_video
from jobs.strikes import STRIKES, QuarantinedError
from jobs.task import Command
from tests.conftest import SoakCount
from tests.jobs.inprocess import do_segments, task_of
from tests.jobs.performing import TWO_LANES, Performing, tasks_of, undisturbed
from tests.media import Sound, write_clip

QUARANTINE = PinSettings(name="job-quarantine", models=("pinned-trail",), torch_threads=1, call_timeout_s=2)
POISONED = TWO_LANES.model_copy(update={"pins": (QUARANTINE,)})

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("test_models")]


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_segments_that_pins_die_of_or_hang_on_are_quarantined_and_all_else_is_finished(
    performed: Performing, soak_count: SoakCount, tmp_path: Path
) -> None:
    names = ("a.mp4", "poison.mp4", "hang.mp4", "b.mp4")
    plain = {task.source.name: task for task in tasks_of(tmp_path, "out", *names, steps=(Step("pinned-trail"),))}
    pts = plan_video(plain["poison.mp4"]).scan.pts
    there = tmp_path / "harmful"
    there.touch()
    harm = {
        "poison.mp4": {"die_at": int(pts[20]), "while": str(there)},
        "hang.mp4": {"sleep_at": int(pts[14]), "seconds": 600, "while": str(there)},
    }
    tasks = {name: replace(task, steps=(Step("pinned-trail", {}, harm.get(name, {})),)) for name, task in plain.items()}
    # To find a pin that hangs takes a quarter of a minute, and a new one seconds of a core: in the reduced count two
    # strikes of the one that hangs, and one of the other, are there before.
    earlier = STRIKES - soak_count(1, STRIKES)
    for name, count in (("hang.mp4", earlier), ("poison.mp4", max(0, earlier - 1))):
        run = plan_video(tasks[name]).runs[0]
        for _ in range(count):
            WorkFolder(tasks[name].folder).strike(run, Strike(1, 12, 24, "pin job-quarantine was lost", "before"))

    done = performed(list(tasks.values()), POISONED)

    assert done.statuses == {name: "failed" if name in harm else "done" for name in names}
    for name in harm:
        error = done.outcomes[name].error
        assert error.startswith(f"{name}: segment 1 (frames 12-23): quarantined after 3 strikes: pin job-quarantine")
        assert f"troupe retry {tmp_path / 'out'}" in error
        row = read_row(tasks[name].root, tasks[name].fingerprint)
        assert row is not None
        assert (row["status"], row["error"], row["input"]) == ("failed", error, str(tmp_path / name))
        (entry,) = json.loads(row["quarantined"])
        assert (entry["segment"], entry["first"], entry["last"]) == (1, 12, 24)
        folder = WorkFolder(tasks[name].folder)
        assert len(folder.all_strikes()) == 3
        assert list(folder.all_done(plan_video(tasks[name]))) == [0]
    for name in ("a.mp4", "b.mp4"):
        assert WorkFolder(tasks[name].folder).all_strikes() == []
        in_one = replace(plain[name], steps=(Step("trail"),))
        assert tasks[name].output.read_bytes() == undisturbed(in_one, tmp_path / f"alone-{name}")

    # Asked again, a lane does not touch what is quarantined; once it is forgiven, only what is missing is done.
    task = tasks["poison.mp4"]
    with pytest.raises(QuarantinedError, match="segment 1"):
        do_segments(task, plan_video(task), POISONED)
    assert len(WorkFolder(task.folder).all_strikes()) == STRIKES
    there.unlink()
    WorkFolder(task.folder).forget_strikes()
    assert do_segments(task, plan_video(task), POISONED) == 24
    assemble(task, plan_video(task))
    in_one = replace(plain["poison.mp4"], steps=(Step("trail"),))
    assert task.output.read_bytes() == undisturbed(in_one, tmp_path / "alone-poison.mp4")


@pytest.mark.parametrize("only_list", [True, False])
def test_retry_runs_the_command_again_after_forgetting_the_strikes(
    tmp_path: Path, joining: dict[str, str], monkeypatch: pytest.MonkeyPatch, only_list: bool
) -> None:
    write_clip(tmp_path / "a.mp4", frames=24, rate=12, width=96, height=64, sounds=(Sound(),))
    command = ("a.mp4", "--preset", "draft", "--matte", "none", "--scale", "1", "--lanes", "1", "-o", "out")
    task = task_of(tmp_path / "a.mp4", tmp_path / "out")
    task = replace(task, command=Command(command, str(tmp_path)))
    run = plan_video(task).runs[0]
    folder = WorkFolder(task.folder)
    for _ in range(3):
        folder.strike(run, Strike(1, 12, 24, "pin upscale was lost", "2026-01-01T00:00:00+00:00"))
    quarantined = json.dumps([{"segment": 1, "first": 12, "last": 24, "reason": "pin upscale was lost", "at": ""}])
    write_row(task.root, row_of(task, status="failed", error="a.mp4: quarantined", quarantined=quarantined))
    for name, value in joining.items():
        monkeypatch.setenv(name, value)
    arguments = ["retry", str(tmp_path / "out"), *(["--list"] if only_list else [])]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "a.mp4: segment 1 (frames 12-23): pin upscale was lost" in " ".join(result.output.split())
    assert (folder.all_strikes() != []) == only_list
    assert (tmp_path / "out" / "a.mp4").exists() != only_list


def test_retry_says_when_there_is_nothing_to_retry(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["retry", str(tmp_path)])
    assert result.exit_code == 0
    assert "nothing is quarantined" in result.output
