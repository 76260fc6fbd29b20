"""Structured logs: one JSON object a line, with the request or task that it is about."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

from serve.edge.request_id import request_id

task_id: ContextVar[str] = ContextVar("task_id", default="")
"""Id of the task that is being worked on; empty outside of one."""

ABOUT = "about"
"""Attribute of a record, for `extra`: further members of its line, by name."""

#: Packages whose records are written.
_LOGGERS = ("serve", "jobs", "cluster", "actors")


class JsonLines(logging.Formatter):
    """A record as one line of JSON; what is not about a request or a task has no such member."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        about = {"request_id": request_id.get(), "task_id": task_id.get()} | getattr(record, ABOUT, {})
        line |= {name: value for name, value in about.items() if value != ""}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_as_json() -> None:
    """Has this process write Troupe's own records to standard error, which Ray keeps and its dashboard shows."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
