"""Two pins that tests share, because each takes seconds to start; they die in some tests, and come up again."""

from __future__ import annotations

from cluster.config import PinSettings

FIRST = PinSettings(name="test-first", models=("pinned-trail", "pinned-echo"), call_timeout_s=60)
SECOND = PinSettings(name="test-second", models=("pinned-trail-too",), call_timeout_s=60)
