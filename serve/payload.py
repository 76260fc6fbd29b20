"""What a task's row says of the work: written by the front desk when it accepts, read by whoever runs it.

Names of files are the server's own, relative to the task's `input` folder; no text of a client is a path.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from jobs.restage.settings import RestageSettings

INPUT = "input"
MASK = "input.mask.video"  # found beside the input by its stem
BACKGROUND = "background"
RESULT = "video.mp4"

#: Tasks that somebody waits for go first, and have a runner of their own.
ON_DEMAND = 10


class RestagePayload(BaseModel):
    """A restaging.

    Attributes:
        settings: complete, so that a change of the presets does not change what was accepted.
        background: name of an uploaded background, which then replaces that of the settings.
        name: what the client calls the video, for display.
        url: where the video is to be fetched, empty when it was uploaded.
        allow_damaged, split_shots: as on the command line.
        uid, split_audio: of the older contract, kept for its answers.
        not_done: steps of the older contract that are not part of this work.
        request_id: of the request that brought it, for logs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: RestageSettings
    background: str = ""
    name: str = ""
    url: str = ""
    allow_damaged: bool = False
    split_shots: bool = False
    uid: str = ""
    split_audio: str = ""
    not_done: tuple[str, ...] = ()
    request_id: str = Field(default="")
