"""multipart/form-data piece by piece (RFC 7578): python-multipart's parser as parts, data and ends."""

from __future__ import annotations

import logging
import re
import unicodedata
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

# The parser reports what it skips, for each body; what is wrong with one is said to its sender.
logging.getLogger("python_multipart").setLevel(logging.ERROR)

_BOUNDARY = re.compile(rb"[ -~]{1,70}")  # RFC 2046 allows 70 characters, and fewer kinds of them than this
_LONGEST_NAME = 200  # of a field
_LONGEST_SHOWN = 100


class MultipartError(Exception):
    """The body is not what it says; the text is a clause about it."""


@dataclass(frozen=True, slots=True)
class Part:
    """The beginning of a part: its field, and the file's name as the client calls it, None when it is no file."""

    field: str
    name: str | None


class End:
    """The end of a part."""


Data = bytes


class MultipartBody:
    """Takes a body in pieces of any size and gives back what they complete.

    Args:
        content_type: the request's header, with the boundary.

    Raises:
        MultipartError: there is no boundary.
    """

    def __init__(self, content_type: str) -> None:
        try:
            boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        except UnicodeEncodeError:  # no header of HTTP is; a caller's own text may be
            boundary = b""
        if not _BOUNDARY.fullmatch(boundary):
            raise MultipartError("has no boundary in its Content-Type")
        self._events: list[Part | Data | End] = []
        self._name, self._value, self._disposition = b"", b"", b""
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def feed(self, piece: bytes) -> list[Part | Data | End]:
        """What `piece` completes, in order.

        Raises:
            MultipartError: it is not multipart/form-data.
        """
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise MultipartError("is not well formed") from error
        events, self._events = self._events, []
        return events

    def finish(self) -> None:
        """The body is over.

        Raises:
            MultipartError: its last boundary is missing.
        """
        if not self._ended:
            raise MultipartError("ends before its last boundary")

    def _on_part_begin(self) -> None:
        self._name = self._value = self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        name = self._name.strip().lower()
        if name == b"content-disposition":
            if self._disposition:
                raise MultipartError("has a part with two Content-Dispositions")
            self._disposition = self._value
        elif name == b"content-transfer-encoding" and self._value.strip().lower() not in (b"binary", b"8bit", b"7bit"):
            raise MultipartError("has a part in a transfer encoding, which RFC 7578 does not allow")
        self._name = self._value = b""

    def _on_headers_finished(self) -> None:
        kind, options = parse_options_header(self._disposition.decode("latin-1"))
        if kind != b"form-data" or b"name" not in options:
            raise MultipartError("has a part without `Content-Disposition: form-data; name=…`")
        field = _text(options[b"name"])
        if len(field) > _LONGEST_NAME:
            raise MultipartError("has a part with an overlong name")
        name = options.get(b"filename")
        self._events.append(Part(field, None if name is None else shown_name(_text(name))))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(data[start:end])

    def _on_part_end(self) -> None:
        self._events.append(End())

    def _on_end(self) -> None:
        self._ended = True


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise MultipartError("has a name that is not UTF-8") from error


def shown_name(name: str) -> str:
    """A client's name of a file for display: its last part, printable, not too long. Never a path."""
    last = re.split(r"[/\\]", name)[-1]
    # Categories C and Z: control characters, direction marks, surrogates, odd blanks; they alter a log or a terminal.
    shown = "".join(c for c in last if unicodedata.category(c)[0] not in "CZ" or c == " ")
    return shown.strip()[:_LONGEST_SHOWN]
