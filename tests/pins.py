"""Two pins that tests share, because each takes seconds to start; they die in some tests, and come up again."""

from __future__ import annotations

from cluster.config import PinSettings

UPSCALE, DENOISE, RVM = "realesr-animevideov3", "realesr-general-x4v3", "rvm-mobilenetv3"

FIRST = PinSettings(
    name="test-first",
    models=(UPSCALE, DENOISE, RVM, "realesrgan-x4plus", "pinned-trail", "pinned-echo"),
    torch_threads=1,
    resident=2,
    call_timeout_s=60,
)
SECOND = PinSettings(name="test-second", models=("pinned-trail-too",), torch_threads=1, call_timeout_s=60)
