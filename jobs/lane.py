"""The lane: takes a run's segments, in order, from decode to encoded file.

Three threads with bounded queues between them: the decoder's frames become batches, the chain moves a window of
batches through its models, and the results are composed and encoded here. The stream does not stop at segment
borders, so pins stay busy; a segment is finished when its last batch arrives, its carry beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing

import numpy as np
from numpy.typing import NDArray

from actors.catalogue import card
from actors.frames import Carry, FrameBatch
from actors.video.decode import Decoder
from actors.video.encode import SegmentWriter
from cluster.calls import Call
from cluster.config import BatchSettings, Config
from cluster.errors import JobError, LostStateError, StoppedError, TroupeError
from cluster.governor import disk_governor
from cluster.heap import give_back_freed
from jobs.ahead import ahead
from jobs.chain import Chain, Done, Piece
from jobs.hold import Hold
from jobs.ledger import DoneSegment, WorkFolder
from jobs.plan import Plan, Run, Segment, companion_scan
from jobs.progress import Count
from jobs.strikes import QuarantinedError, RunStrikes
from jobs.task import VideoTask

#: Batches decoded ahead, and results waiting for the encoder. Two hide the jitter of either side.
_QUEUE = 2

_BATCH = Call()


def _untold(*_: object) -> None:
    return None


def run_segments(
    task: VideoTask,
    plan: Plan,
    run: Run,
    config: Config,
    *,
    on_frames: Callable[[int], None],
    on_note: Callable[[str], None],
    on_count: Callable[[Count, int], None] = _untold,
    on_pause: Callable[[str | None], None] = _untold,
    stop: Callable[[], None] = _untold,
    call: Call = _BATCH,
) -> int:
    """Does the segments of a run that are not done yet.

    Args:
        task: the video.
        plan: its plan.
        run: one of the plan's runs.
        config: window, batch sizes, pins.
        on_frames: told how many more frames are encoded.
        on_note: told of repeated calls.
        on_count: told of segments that are done, failed or quarantined.
        on_pause: told why no new frames are taken, again and again; None when it goes on.
        stop: asked between batches and while it waits for one; raises StoppedError to end the run, whose finished
            segments are kept.
        call: the class and request of its calls to pins; batch's by default.

    Returns:
        Frames encoded now; those of segments that were done before are not counted.

    Raises:
        QuarantinedError: a segment had its last strike, now or earlier; all that do not need its state are done.
        JobError: with the video, the segment and the reason; finished segments are kept.
    """
    work = WorkFolder(task.folder)
    strikes = RunStrikes(task, run, work, on_count)
    stateful = any(card(step.model).stateful for step in task.steps)
    resets = set(plan.cuts.tolist())
    frames = rewinds = 0
    while True:
        done = work.done(run)
        part = _next_part(run, done, strikes, lambda segment: stateful and segment.first not in resets)
        if not part:
            break
        state = _state_before(work, run, part[0], len(task.steps), done)
        whole = False
        try:
            with ExitStack() as stack:
                chain = Chain(task.steps, config, on_note, strikes, call, stop)
                hold = Hold(disk_governor(config.troupe.governor, task.root.parent), on_pause)
                source = _Source(task, plan, config.troupe.batch, hold, stack)
                pieces = stack.enter_context(ahead(source.pieces(part), _QUEUE, "decode"))
                results = stack.enter_context(ahead(chain.stream(pieces, state), _QUEUE, "chain", stop))
                # Before the threads are told to stop: the decoder's may be waiting for room.
                stack.callback(hold.end)
                sink = _Sink(task, plan, run, work, stack, on_frames, on_count)
                sink.write(results, part)
                whole = True
        except QuarantinedError:
            pass  # its segment is left out of the next part
        except LostStateError as error:
            rewinds += 1
            if rewinds > config.troupe.batch.retries:
                raise
            on_note(f"{error.reason}: going on from the last finished segment")
        made = {index: segment for index, segment in work.done(run).items() if index not in done}
        frames += sum(segment.frames for segment in made.values())
        if whole and (lost := [segment for segment in part if segment.index not in made]):
            name, folder = task.source.name, task.folder
            raise JobError(name, f"was written and is not there as written: {folder}", place=lost[0].place)
    for segment in run.segments:
        if strikes.is_quarantined(segment):
            raise strikes.quarantined(segment)
    return frames


class _Source:
    """Decodes segments into batches, companions (a mask) beside them."""

    def __init__(self, task: VideoTask, plan: Plan, settings: BatchSettings, hold: Hold, stack: ExitStack) -> None:
        self._task, self._plan, self._hold = task, plan, hold
        self._decoder = stack.enter_context(closing(Decoder(plan.scan, task.limits)))
        self._masks = {
            plane: stack.enter_context(closing(Decoder(companion_scan(task, plane), task.limits)))
            for plane in task.companions
        }
        self._frames = batch_frames(plan, task, settings)

    def pieces(self, segments: list[Segment]) -> Iterator[Piece]:
        """The segments' batches in order; a batch never crosses a segment's border."""
        for segment in segments:
            start = segment.first - segment.warmup
            for first in range(start, segment.last, self._frames):
                last = min(first + self._frames, segment.last)
                if first < segment.first < last:
                    # Warm-up frames get batches of their own: their results are dropped whole.
                    yield self._piece(segment, first, segment.first)
                    first = segment.first
                yield self._piece(segment, first, last)

    def _piece(self, segment: Segment, first: int, last: int) -> Piece:
        self._hold.wait()
        begun = time.perf_counter()
        scan = self._plan.scan
        rgb = np.empty((last - first, scan.info.height, scan.info.width, 3), np.uint8)
        self._decoder.read_into(rgb, first, last)
        cut = np.isin(np.arange(first, last), self._plan.cuts)
        planes = {name: _mask(decoder, first, last) for name, decoder in self._masks.items()}
        batch = FrameBatch(rgb, scan.pts[first:last], cut, planes=planes)
        return Piece(segment, batch, first, last == segment.last, time.perf_counter() - begun)


class _Sink:
    """Composes and encodes results; finishes a segment when its last batch is in."""

    def __init__(
        self,
        task: VideoTask,
        plan: Plan,
        run: Run,
        work: WorkFolder,
        stack: ExitStack,
        on_frames: Callable[[int], None],
        on_count: Callable[[Count, int], None],
    ) -> None:
        self._task, self._plan, self._run, self._work = task, plan, run, work
        self._composer = stack.enter_context(closing(task.finish.open(plan.scan)))
        self._writer: SegmentWriter | None = None
        self._on_frames, self._on_count = on_frames, on_count
        self._seconds: dict[str, float] = {}
        self._retries = 0
        self._notices: dict[str, None] = {}
        stack.callback(self._abort)

    def write(self, results: Iterator[Done], segments: Iterable[Segment]) -> None:
        """Everything that the chain yields, which is these segments.

        Raises:
            JobError: whatever failed on the way of a batch, with its video and segment.
            Exception: a model's own error.
        """
        for segment in segments:
            try:
                while not self._write_next(results):
                    pass
            except (QuarantinedError, LostStateError, StoppedError):
                raise
            except Exception as error:
                self._on_count("segments_failed", 1)
                if not isinstance(error, TroupeError):
                    raise
                name = self._task.source.name
                reason = ": ".join(part for part in (error.thing, error.place, error.reason) if part not in ("", name))
                raise JobError(name, reason, place=segment.place, remedy=error.remedy) from error

    def _write_next(self, results: Iterator[Done]) -> bool:
        """Takes one result; True when it ends its segment."""
        begun = time.perf_counter()
        done = next(results)
        self._spend("wait", time.perf_counter() - begun)
        for stage, seconds in done.seconds.items():
            self._spend(stage, seconds)
        self._retries += done.retries
        self._notices |= dict.fromkeys(done.notices)
        self._write(done)
        return done.piece.ends

    def _write(self, done: Done) -> None:
        piece = done.piece
        if piece.first < piece.segment.first:
            return
        writer = self._writer or self._open(piece.segment)
        begun = time.perf_counter()
        composing = 0.0
        for frame in self._composer.compose(piece.batch):
            composed = time.perf_counter()
            composing += composed - begun
            assert frame.pts is not None
            writer.write(frame, frame.pts)
            begun = time.perf_counter()
            self._spend("encode", begun - composed)
        self._spend("compose", composing)
        self._on_frames(len(piece.batch))
        if piece.ends:
            self._finish(piece.segment, writer, done.carries or ())

    def _open(self, segment: Segment) -> SegmentWriter:
        width, height = self._task.finish.size
        info = self._plan.scan.info
        self._writer = SegmentWriter(
            self._work.segment_path(segment), width, height, info.rate, info.time_base, self._task.encoder
        )
        return self._writer

    def _finish(self, segment: Segment, writer: SegmentWriter, carries: tuple[Carry, ...]) -> None:
        begun = time.perf_counter()
        written = writer.close()
        self._writer = None
        # A run ends where state resets, or where the next run brings up its own: nobody would read this one, and RVM's
        # is as large as seconds of video.
        carry = self._work.store_carries(segment, () if segment == self._run.segments[-1] else carries)
        self._spend("encode", time.perf_counter() - begun)
        self._work.record(
            self._run,
            DoneSegment(
                segment.index,
                written.frames,
                written.nbytes,
                written.sha256,
                carry,
                self._seconds,
                self._retries,
                (*self._task.notices, *self._notices),
            ),
        )
        self._on_count("segments_done", 1)
        self._seconds, self._retries, self._notices = {}, 0, {}
        give_back_freed()

    def _spend(self, stage: str, seconds: float) -> None:
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    def _abort(self) -> None:
        if self._writer is not None:
            self._writer.abort()


def batch_frames(plan: Plan, task: VideoTask, settings: BatchSettings) -> int:
    """Frames in a batch, so that neither what enters the chain nor what leaves it is larger than `batch_mib`."""
    info = plan.scan.info
    width, height = task.finish.size
    # Results may carry alpha: four bytes a pixel.
    largest = max(3 * info.width * info.height, 4 * width * height)
    return max(1, min(settings.batch_frames, settings.batch_mib * 2**20 // largest))


def _mask(decoder: Decoder, first: int, last: int) -> NDArray[np.uint8]:
    """Frames of a mask video, uint8 [T,H,W]. A mask is grey: any channel holds it."""
    return np.stack([frame[:, :, 1] for frame in decoder.frames(first, last)])


def _next_part(
    run: Run, done: dict[int, DoneSegment], strikes: RunStrikes, needs_state: Callable[[Segment], bool]
) -> list[Segment]:
    """Neighbours that are to be done, one stream with one state before it; nothing when there are none.

    Behind a segment that will not be made, those that need its state cannot be made either.
    """
    part: list[Segment] = []
    has_state = True
    for segment in run.segments:
        if segment.index in done or strikes.is_quarantined(segment):
            if part:
                break
            has_state = segment.index in done
        elif part or has_state or not needs_state(segment):
            part.append(segment)
    return part


def _state_before(
    work: WorkFolder, run: Run, segment: Segment, steps: int, done: dict[int, DoneSegment]
) -> list[Carry]:
    """The carries to begin with: those stored after the segment before, or none at a run's start and where the chain
    has no state."""
    before = [s for s in run.segments if s.index == segment.index - 1 and s.index in done]
    if not before:
        return [{} for _ in range(steps)]
    return list(work.load_carries(before[0], steps))
