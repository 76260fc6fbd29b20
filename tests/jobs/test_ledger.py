"""The ledger: what counts as done is on the disk, whole; everything else is done again; one job at a time."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pyarrow.parquet as pq
import pytest

from actors.catalogue import CARDS
from actors.model import Step
from cluster.errors import JobError, UsageError
from cluster.files import partial_path
from jobs import batch, ledger
from jobs.assemble import assemble, row_of
from jobs.command import unfinished
from jobs.display import Display
from jobs.ledger import ROW, WorkFolder, output_lock, read_row, remove_partials, write_row
from jobs.plan import Plan, plan_video
from jobs.progress import Reporter
from jobs.task import VideoTask
from tests.broken import write_damaged
from tests.jobs.command import ROOT
from tests.jobs.inprocess import config_of, do_segments, restage, task_of
from tests.media import Sound, number, read_rgb, write_clip
from tests.models import TEST_CARDS

pytestmark = pytest.mark.usefixtures("test_models")


Work = tuple[VideoTask, Plan, WorkFolder]


@pytest.fixture(scope="module")
def done_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[VideoTask, Plan]:
    """A clip of four segments with a stateful model, all of them done."""
    folder = tmp_path_factory.mktemp("ledger")
    clip = write_clip(folder / "a.mp4", frames=40, rate=10, width=64, height=48, sounds=(Sound(),))
    task = replace(task_of(clip.path, folder / "out"), steps=(Step("trail"),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CARDS, "trail", next(card for card in TEST_CARDS if card.name == "trail"))
        plan = plan_video(task)
        do_segments(task, plan)
    return task, plan


@pytest.fixture
def work(done_once: tuple[VideoTask, Plan], tmp_path: Path) -> Work:
    """The same in a folder of the test's own."""
    made, plan = done_once
    shutil.copytree(made.output.parent, tmp_path / "out")
    task = replace(made, root=tmp_path / "out" / ".troupe", output=tmp_path / "out" / made.output.name)
    folder = WorkFolder(task.folder)
    assert list(folder.all_done(plan)) == [0, 1, 2, 3]
    return task, plan, folder


def final(task: VideoTask, plan: Plan) -> bytes:
    assemble(task, plan)
    return task.output.read_bytes()


@pytest.mark.parametrize("name", ["00001.mp4", "00001.npz"])
@pytest.mark.parametrize("harm", ["missing", "cut off", "another"])
def test_harmed_segment_or_carry_is_done_again(work: Work, name: str, harm: str) -> None:
    task, plan, folder = work
    path = task.folder / name
    whole = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "cut off":
        path.write_bytes(whole[:-1])
    else:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert list(folder.all_done(plan)) == [0, 2, 3]
    assert do_segments(task, plan) == 10
    assert sorted(folder.all_done(plan)) == [0, 1, 2, 3]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_torn_journal_line_costs_that_segment_alone(work: Work, kept: int) -> None:
    task, plan, folder = work
    (journal,) = task.folder.glob("run-*.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]) + lines[-1][:kept])
    torn = "\n" if kept == -1 else lines[-1][kept:]
    expected = [0, 1, 2, 3] if torn == "\n" else [0, 1, 2]
    assert list(folder.all_done(plan)) == expected
    assert do_segments(task, plan) == 10 * (4 - len(expected))
    assert sorted(folder.all_done(plan)) == [0, 1, 2, 3]


def test_line_after_a_torn_one_counts(work: Work) -> None:
    task, plan, folder = work
    (journal,) = task.folder.glob("run-*.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    # What a kill left behind, and what the next start appends to it.
    journal.write_text("".join(lines[:2]) + lines[2][:30])
    do_segments(task, plan)
    assert sorted(folder.all_done(plan)) == [0, 1, 2, 3]


def test_journal_of_another_plan_counts_for_nothing(work: Work) -> None:
    task, plan, folder = work
    (journal,) = task.folder.glob("run-*.jsonl")
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    journal.write_text("".join(json.dumps({**entry, "frames": entry["frames"] + 1}) + "\n" for entry in entries))
    assert folder.all_done(plan) == {}


def test_interrupted_work_gives_the_file_of_undisturbed_work(work: Work, tmp_path: Path) -> None:
    task, plan, _ = work
    expected = final(task, plan)
    again = replace(task, root=tmp_path / "again" / ".troupe", output=tmp_path / "again" / "a.mp4")
    do_segments(again, plan_video(again))
    for path in again.folder.glob("00002.*"):
        path.unlink()
    do_segments(again, plan_video(again))
    assert final(again, plan_video(again)) == expected


def test_partial_files_are_removed_wherever_they_lie_and_finished_ones_kept(work: Work) -> None:
    task, plan, folder = work
    task.output.parent.mkdir(parents=True, exist_ok=True)
    halves = [
        task.folder / ".00007.mp4.4711-deadbeef.part",
        task.folder / "stream-0123.mp4.part",
        partial_path(task.output),
    ]
    mine = task.output.parent / "notes.part"
    for path in (*halves, mine):
        path.write_bytes(b"half")
    remove_partials(task.root, [task.output])
    assert not any(path.exists() for path in halves)
    assert mine.exists()
    assert len(folder.all_done(plan)) == 4


def test_assembled_video_keeps_no_segments(work: Work) -> None:
    task, plan, _ = work
    assemble(task, plan)
    assert task.output.is_file()
    assert [path.name for path in task.folder.iterdir()] == ["scan.npz"]


def test_missing_segment_is_no_result(work: Work) -> None:
    task, plan, _ = work
    (task.folder / "00003.mp4").unlink()
    with pytest.raises((JobError, OSError)):
        assemble(task, plan)
    assert not task.output.exists()


def test_row_holds_input_output_settings_weights_and_cost(work: Work) -> None:
    task, plan, _ = work
    task = replace(task, weights={"net": "ab" * 32})
    plan_video(task)
    do_segments(task, plan_video(task))
    row = assemble(task, plan)
    (path,) = (task.root / "ledger").glob("*.parquet")
    table = pq.read_table(path)
    assert table.schema.equals(ROW)
    assert table.to_pylist() == [row] == [read_row(task.root, task.fingerprint)]
    assert (row["status"], row["error"], row["frames"], row["segments"], row["retries"]) == ("done", "", 40, 4, 0)
    assert (row["input"], row["output"]) == (str(task.source), str(task.output))
    assert json.loads(row["weights"]) == {"net": "ab" * 32}
    assert json.loads(row["settings"])["upscale"] == "lanczos"
    assert {"trail", "encode", "compose", "join", "verify"} <= json.loads(row["seconds"]).keys()
    assert row["output_bytes"] == task.output.stat().st_size


def test_notices_of_segments_are_in_the_row_whoever_made_the_others(work: Work) -> None:
    task, plan, _ = work
    for index in (0, 2):
        (task.folder / f"{index:05d}.mp4").unlink()
    do_segments(replace(task, notices=("made by other code",)), plan)
    assert assemble(task, plan)["notices"] == ["made by other code"]


def test_video_forgotten_by_force_stays_to_do_until_it_is_done(work: Work) -> None:
    task, plan, folder = work
    assemble(task, plan)
    display = Display("json")
    assert unfinished([task], display, force=False) == []
    assert unfinished([task], display, force=True) == [task]
    # Interrupted now, the file of before is still there, whole.
    assert task.output.is_file()
    assert unfinished([task], display, force=False) == [task]
    assert folder.all_done(plan) == {}


def test_failed_video_has_a_row_with_its_error(work: Work) -> None:
    task, _, _ = work
    write_row(task.root, row_of(task, status="failed", error="a.mp4: no"))
    row = read_row(task.root, task.fingerprint)
    assert row is not None
    assert (row["status"], row["error"]) == ("failed", "a.mp4: no")


def test_damaged_row_is_an_error_that_says_what_to_do(work: Work) -> None:
    task, _, _ = work
    write_row(task.root, row_of(task, status="done"))
    (path,) = (task.root / "ledger").glob("*.parquet")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(JobError, match=r"is damaged: .*; remove it"):
        read_row(task.root, task.fingerprint)


def test_second_job_in_the_same_output_folder_is_refused(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from jobs.ledger import output_lock\n"
    script += "with output_lock(Path(sys.argv[1])): print('held')"
    command = [sys.executable, "-c", script, str(tmp_path / ".troupe")]
    with output_lock(tmp_path / ".troupe"):
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        with pytest.raises(UsageError, match="another job is writing here"), output_lock(tmp_path / ".troupe"):
            pass
    assert "another job is writing here" in second.stderr
    after = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert after.stdout == "held\n"


HOLDER = """
import sys, time
from pathlib import Path
from jobs.ledger import worker_hold
root = Path(sys.argv[1])
with worker_hold(root), worker_hold(root):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
    (root / "assembled").touch()
"""


def holder(root: Path, seconds: float) -> subprocess.Popen[str]:
    """A lane or an assembler that its driver's death has not reached yet."""
    command = [sys.executable, "-c", HOLDER, str(root), str(seconds)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_job_waits_for_what_is_left_of_a_killed_one(tmp_path: Path) -> None:
    with holder(tmp_path, 0.5), output_lock(tmp_path):
        assert (tmp_path / "assembled").exists()


def test_job_does_not_wait_for_ever_for_what_is_left_of_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "_WORKERS_SECONDS", 0.2)
    with holder(tmp_path, 60) as process:
        with pytest.raises(UsageError, match="another job is writing here"), output_lock(tmp_path):
            pass
        process.kill()


def test_lanes_and_assemblers_hold_the_folder_while_they_work(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    task, plan, _ = work
    monkeypatch.setattr(ledger, "_WORKERS_SECONDS", 0)
    monkeypatch.setattr(batch, "die_with_parent", lambda: None)
    refused = []

    def try_to_take_over(*_: object, **__: object) -> None:
        with pytest.raises(UsageError, match="another job"), output_lock(task.root):
            pass
        refused.append(True)

    monkeypatch.setattr(batch, "run_segments", try_to_take_over)
    monkeypatch.setattr(batch, "assemble", try_to_take_over)
    row = {"video": 0, "run": plan.runs[0].index, "runs": 1, "task": pickle.dumps(task), "error": ""}
    assert batch.Lane(config_of(), Reporter(MagicMock()), allow_skew=True)(row)["error"] == ""
    batch._assemble_planned(task)
    assert refused == [True, True]
    with output_lock(task.root):
        pass


@pytest.mark.parametrize(
    "change",
    [
        {"source_hash": "0" * 64},
        {"steps": (Step("trail", {}, {"long_side": 512}),)},
        {"weights": {"net": "1"}},
        {"code": "other"},
        {"segment_seconds": 2},
        {"warmup_frames": 4},
        {"allow_damaged": True},
        {"companions": {"mask": (Path("m.mp4"), "2")}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_the_pixels_changes_the_fingerprint(work: Work, change: dict[str, object]) -> None:
    task, _, _ = work
    assert replace(task, **change).fingerprint != task.fingerprint  # type: ignore[arg-type]


def test_encoder_and_size_change_the_fingerprint_and_the_place_does_not(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=3, width=64, height=48)
    plain = task_of(clip.path, tmp_path / "out")
    assert task_of(clip.path, tmp_path / "elsewhere").fingerprint == plain.fingerprint
    changes: tuple[dict[str, Any], ...] = ({"crf": 30}, {"preset": "medium"}, {"threads": 3}, {"gop_seconds": 1})
    encoders = [replace(plain.encoder, **change) for change in changes]
    others = [task_of(clip.path, tmp_path / "out", target="2"), *(replace(plain, encoder=other) for other in encoders)]
    assert len({task.fingerprint for task in [plain, *others]}) == 6


def test_allowed_damage_is_counted_in_the_row(tmp_path: Path) -> None:
    write_damaged(tmp_path / "a.mp4")
    _, row = restage(tmp_path / "a.mp4", tmp_path / "out", config_of(), allow_damaged=True)
    assert row["damaged"] > 0
    assert any("damaged frames" in notice for notice in row["notices"])


def test_stored_plan_follows_its_content_to_another_name(tmp_path: Path) -> None:
    """Clips that were renumbered: each result shows its own clip, with its own sound."""
    first, second = (
        write_clip(tmp_path / f"{n}.mp4", frames=20, width=64, height=48, first=n * 100, sounds=(Sound(),)).path
        for n in (1, 2)
    )
    restage(first, tmp_path / "out")
    first.rename(tmp_path / "moved.mp4")
    second.rename(first)
    (tmp_path / "moved.mp4").rename(second)
    task = task_of(second, tmp_path / "out")
    kept = next((tmp_path / "out" / ".troupe").glob("*/scan.npz"))
    task.folder.mkdir(parents=True)
    shutil.copy(kept, task.folder / "scan.npz")
    plan = plan_video(task)
    do_segments(task, plan)
    assemble(task, plan)
    assert [number(frame) for frame in read_rgb(task.output)] == list(range(100, 120))


def test_clips_of_equal_content_and_pins_of_other_settings_have_work_folders_of_their_own(tmp_path: Path) -> None:
    one = write_clip(tmp_path / "a.mp4", frames=4, width=64, height=48).path
    two = Path(shutil.copy(one, tmp_path / "b.mp4"))
    tasks = [task_of(path, tmp_path / "out") for path in (one, two)]
    tasks.append(replace(tasks[0], pins={"realesrgan-x4plus": {"tile": 512}}))
    assert len({task.fingerprint for task in tasks}) == 3
    elsewhere = replace(tasks[0], root=tmp_path / "moved/.troupe", output=tmp_path / "moved" / tasks[0].output.name)
    assert elsewhere.fingerprint == tasks[0].fingerprint


def test_output_that_cannot_be_written_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    refused = r"cannot be written to: .*choose another -o"
    with pytest.raises(UsageError, match=refused), output_lock(tmp_path / "out/.troupe"):
        pass
