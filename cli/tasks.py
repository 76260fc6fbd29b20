"""`troupe tasks`: what a server has been given to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import remote
from cli.manners import exit_codes, print_json, say_error
from cli.submit import carry_out
from cli.watching import Awaited, Watch, follow_to_the_end
from cluster.errors import Exit, TroupeError, UsageError
from cluster.service_settings import DEFAULT_SERVER
from cluster.tables import as_table
from jobs.options import AsJson as JsonLines

if TYPE_CHECKING:
    from serve.client import Client
    from serve.schemas import TaskView

app = typer.Typer(help="Tasks of a server: list, show, wait for, cancel, retry, purge.", no_args_is_help=True)


class _State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


Ids = Annotated[list[str], typer.Argument(metavar="ID", help="As `troupe tasks list` shows.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.command("list")
def list_tasks(
    state: Annotated[_State | None, typer.Option("--state", help="Only tasks in this state.")] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Most tasks, the newest.")] = 50,
    as_json: JsonOption = False,
    server: remote.Server = DEFAULT_SERVER,
    token: remote.Token = "",
) -> None:
    """Show the token's tasks, newest first."""
    with exit_codes(), remote.asked(server, token) as client:
        from serve.store.values import TaskState

        found = list(client.tasks(state=TaskState(state) if state else None, limit=limit))
    if as_json:
        print_json([task.model_dump(mode="json") for task in found])
        return
    head = ("id", "state", "progress", "created", "took", "name")
    rows = [(t.id, t.state.value, _progress(t), _when(t.created), _took(t), t.name) for t in found]
    print("\n".join(as_table(head, rows)) if rows else "no tasks")


@app.command("show")
def show_tasks(
    ids: Ids, as_json: JsonOption = False, server: remote.Server = DEFAULT_SERVER, token: remote.Token = ""
) -> None:
    """Show all that is known of tasks."""

    def each(client: Client, task_id: str) -> TaskView:
        return client.task(task_id)

    _for_each(ids, server, token, as_json, each, lambda task: "\n".join(_lines(task)))


@app.command("wait")
def wait_for_tasks(
    ids: Ids,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="Download the results into it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace results that are there.")] = False,
    as_json: JsonLines = False,
    server: remote.Server = DEFAULT_SERVER,
    token: remote.Token = "",
    patience: remote.Patience = remote.PATIENCE,
) -> None:
    """Wait until tasks have ended, and download their results: goes on where `troupe submit --wait` was interrupted."""
    watch = Watch.choose(as_json=as_json)

    def work() -> int:
        with remote.asked(server, token, patience, watch.note) as client:
            watch.server, watch.output = client.server, output
            found = [client.task(task_id) for task_id in dict.fromkeys(ids)]
            watch.going |= {task.id: Awaited(task.id, task.name or task.id, None) for task in found}
            if output is not None:
                watch.going |= {task.id: _into(output, task, found, force=force) for task in found}
            follow_to_the_end(client, watch, overwrite=force)
        return Exit.SOME_FAILED if watch.failures else Exit.DONE

    carry_out(watch, work)


@app.command("cancel")
def cancel_tasks(
    ids: Ids, as_json: JsonOption = False, server: remote.Server = DEFAULT_SERVER, token: remote.Token = ""
) -> None:
    """Cancel tasks: queued ones at once, running ones within seconds."""

    def each(client: Client, task_id: str) -> TaskView:
        return client.cancel(task_id)

    _for_each(ids, server, token, as_json, each, lambda task: f"{task.id}: {_cancelled(task)}")


@app.command("retry")
def retry_tasks(
    ids: Ids, as_json: JsonOption = False, server: remote.Server = DEFAULT_SERVER, token: remote.Token = ""
) -> None:
    """Queue failed or cancelled tasks again."""

    def each(client: Client, task_id: str) -> TaskView:
        return client.retry(task_id)

    _for_each(ids, server, token, as_json, each, lambda task: f"{task.id}: {task.state.value}")


@app.command("purge")
def purge_tasks(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="As `troupe tasks list` shows.")] = None,
    older_than: Annotated[
        float | None, typer.Option("--older-than", metavar="DAYS", min=0, help="All that ended so long ago.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    server: remote.Server = DEFAULT_SERVER,
    token: remote.Token = "",
) -> None:
    """Remove tasks that have ended, with their results."""
    with exit_codes(), remote.asked(server, token) as client:
        if bool(ids) == (older_than is not None):
            raise UsageError("tasks purge", "needs either ids or --older-than", remedy="see `troupe tasks list`")
        wanted = list(dict.fromkeys(ids or ())) or [task.id for task in _ended_before(client, older_than or 0.0)]
        if wanted and not yes:
            _ask(f"Remove {len(wanted)} task{'s' * (len(wanted) != 1)} with results from {client.server}?")
        removed, failed = [], {}
        for task_id in wanted:
            try:
                client.purge(task_id)
                removed.append(task_id)
            except TroupeError as error:
                failed[task_id] = _told(error)
        if as_json:
            print_json({"removed": removed, "failed": failed})
        else:
            print(f"{len(removed)} removed")
        if failed:
            raise typer.Exit(Exit.SOME_FAILED)


def _for_each(
    ids: Sequence[str],
    server: str,
    token: str,
    as_json: bool,
    do: Callable[[Client, str], TaskView],
    text: Callable[[TaskView], str],
) -> None:
    """One after the other; one that is refused does not stop the rest."""
    found: list[TaskView] = []
    code = Exit.DONE
    with exit_codes(), remote.asked(server, token) as client:
        for task_id in dict.fromkeys(ids):
            try:
                task = do(client, task_id)
            except TroupeError as error:
                _told(error)
                code = max(code, Exit.of(error))
                continue
            found.append(task)
            if not as_json:
                print(text(task))
    if as_json:
        print_json([task.model_dump(mode="json") for task in found])
    raise typer.Exit(code)


def _told(error: TroupeError) -> str:
    """Says what happened to one task. That nobody answers, or no token is known, is no task's own."""
    if getattr(error, "status", 1) in (0, 401, 403):
        raise error
    say_error(error)
    return str(error)


def _ended_before(client: Client, days: float) -> Iterator[TaskView]:
    before = datetime.now(UTC) - timedelta(days=days)
    for task in client.tasks():
        if task.finished is not None and task.state.ended and task.finished < before:
            yield task


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError("tasks purge", "removes results, and there is nobody to ask", remedy="add --yes")
    typer.confirm(question, abort=True)


def _into(folder: Path, task: TaskView, others: Sequence[TaskView], *, force: bool) -> Awaited:
    """Where a task's result goes: named like its video, with the id where two have one name."""
    name = remote.result_name(task.name)
    if any(remote.result_name(other.name) == name and other.id != task.id for other in others):
        name = f"{name.removesuffix('.mp4')}-{task.id}.mp4"
    target = folder.absolute() / name
    if os.path.lexists(target) and not force:
        raise UsageError(target, "is there already", remedy="replace it with --force, or choose another -o")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(folder, error.strerror or str(error), remedy="choose another -o") from error
    return Awaited(task.id, task.name or task.id, target)


def _cancelled(task: TaskView) -> str:
    return "cancelled" if task.state.ended else "will stop within seconds"


def _progress(task: TaskView) -> str:
    progress = task.progress
    if progress is None or not progress.total:
        return "-"
    return f"{progress.frames}/{progress.total}"


def _when(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")


def _took(task: TaskView) -> str:
    if task.started is None:
        return "-"
    return f"{((task.finished or datetime.now(UTC)) - task.started).total_seconds():.0f} s"


def _lines(task: TaskView) -> Iterator[str]:
    yield f"{task.id}: {task.name}"
    for name, value in _facts(task):
        yield f"    {name:<9} {value}"


def _facts(task: TaskView) -> Iterator[tuple[str, Any]]:
    yield "state", task.state.value + (" (to be cancelled)" if task.cancel_requested and not task.state.ended else "")
    if task.ahead is not None:
        yield "before it", task.ahead
    yield "created", _when(task.created)
    if task.started is not None:
        yield "took", f"{_took(task)}, attempt {task.attempts}"
    if (progress := task.progress) is not None:
        left = "" if progress.eta_s is None or task.state.ended else f", {progress.eta_s:.0f} s left"
        yield "progress", f"{progress.stage or 'through'}, {_progress(task)} frames, {progress.fps:.1f} fps{left}"
        if progress.paused:
            yield "paused", progress.paused
        for note in progress.notes:
            yield "note", note
    yield "settings", ", ".join(f"{name} {value}" for name, value in task.settings.items() if value is not None)
    if (result := task.result) is not None:
        yield "result", f"{result.frames} frames, {result.bytes:,} bytes, sha256 {result.sha256}"
        for notice in (*result.notices, *(f"{step} was not done" for step in result.not_done)):
            yield "notice", notice
    if task.error is not None:
        yield "error", f"{task.error.detail} ({task.error.code})"
    if (webhook := task.webhook) is not None:
        tried = f", attempt {webhook.attempts}: {webhook.answer or 'no answer yet'}" if webhook.attempts else ""
        yield "webhook", webhook.state.replace("_", " ") + tried
