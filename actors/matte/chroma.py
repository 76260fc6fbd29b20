"""Green- and blue-screen keying by colour difference, against the screen's own colour at each place.

The screen's excess of its primary over the larger of the other two falls to zero as the figure covers it (Vlahos's
colour-difference key). Divided by the excess of the bare screen nearby, it is the screen's share of the pixel whatever
the light; chroma distances are four times worse on compressed 4:2:0 video.

The excess alone calls a pixel opaque too soon, because most figures have less than none (skin: -45 of 255). Where the
figure nearby has one clear colour, the pixel's place on the line from screen to figure is used instead.

Light and colours come from a coarse grid (`screen.py`); at full size there are only a few passes of OpenCV over single
planes, because that is what a lane can afford per frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import cv2
import numpy as np

from actors.frames import Carry, FrameBatch, UInt8
from actors.matte.screen import (
    HIGH,
    LOW,
    PRIMARY,
    Float,
    Screen,
    ScreenModel,
    larger_screen,
    others,
    screen_model,
    shrunk,
)
from cluster.errors import UsageError

#: Foreground is un-mixed as if alpha were at least this, of 255: below it is mostly noise.
_LEAST_ALPHA = 25
#: By alpha: what is added to a pixel, as a multiple of its difference from the screen: S + (I - S) / alpha - I.
_UNMIX = (255 / np.maximum(np.arange(256), _LEAST_ALPHA) - 1).astype(np.float32)
#: Squared difference from the screen, of 255, that noise makes: directions of smaller differences mean nothing.
_NOISE2 = 10.0**2


class Chroma:
    """Alpha and despilled, un-mixed foreground before a green or blue screen. Stateless.

    A frame without any screen colour is all figure: alpha 255, colours untouched.

    Params:
        screen: `green`, `blue`, or `auto` (default): whichever covers more of the frame, frame by frame.
    """

    def __call__(self, batch: FrameBatch, carry: Carry, params: Mapping[str, Any]) -> tuple[FrameBatch, Carry]:  # noqa: ARG002
        screen = params.get("screen", "auto")
        if screen not in ("auto", *PRIMARY):
            raise UsageError("screen", f"{screen!r} is not a screen colour", remedy="choose green, blue or auto")
        rgb, alpha = np.empty_like(batch.rgb), np.empty(batch.rgb.shape[:3], np.uint8)
        keyer = _Keyer(*batch.size)
        for index, frame in enumerate(batch.rgb):
            keyer.key(frame, screen, rgb[index], alpha[index])
        return batch.with_pixels(rgb, alpha), {}


class _Keyer:
    """Keys frames of one size.

    It holds planes for intermediate results and nothing else: fresh ones for every frame would cost more in page
    faults than the arithmetic.
    """

    def __init__(self, width: int, height: int) -> None:
        self.size = width, height
        self.floats = [np.empty((height, width), np.float32) for _ in range(4)]
        self.differences = [np.empty((height, width), np.float32) for _ in range(3)]
        self.planes = [np.empty((height, width), np.uint8) for _ in range(3)]
        self.spare = np.empty((height, width), np.uint8)
        self.picture = np.empty((height, width, 3), np.uint8)

    def key(self, frame: UInt8, screen: Screen | Literal["auto"], rgb: UInt8, alpha: UInt8) -> None:
        """Writes the foreground of frame [H,W,3] into rgb [H,W,3] and its alpha into alpha [H,W]."""
        small = shrunk(frame)
        primary = PRIMARY[screen] if screen != "auto" else larger_screen(small)
        model = screen_model(small, primary)
        if model is None:
            rgb[:], alpha[:] = frame, 255
            return
        for channel, plane in enumerate(self.planes):
            cv2.extractChannel(frame, channel, dst=plane)
        self._differ(model.screen)
        self._alpha(primary, model, alpha)
        # Bare screen keeps its despilled grey and is not zeroed: 4:2:0 chroma mixes neighbours whatever their alpha is.
        self._despilled(primary, rgb)
        self._unmix(alpha)
        cv2.copyTo(self._despilled(primary, self.picture), cv2.inRange(alpha, 1, 254, dst=self.spare), rgb)

    def _differ(self, screen: Float) -> None:
        """The planes less the bare screen."""
        behind = self.floats[0]
        for plane, colour, difference in zip(self.planes, cv2.split(screen), self.differences, strict=True):
            cv2.subtract(plane, cv2.resize(colour, self.size, dst=behind), dst=difference, dtype=cv2.CV_32F)

    def _alpha(self, primary: int, model: ScreenModel, alpha: UInt8) -> None:
        """alpha = 255 (1 - (share - LOW) / (HIGH - LOW)); share is the screen's part of the pixel."""
        by_excess, along, length2, field = self.floats
        gain = 255 / (HIGH - LOW)
        top = 255 + gain * LOW

        # share = excess / the screen's
        cv2.resize(-gain / model.excess, self.size, dst=field)
        cv2.subtract(self.planes[primary], others(self.planes, primary, dst=self.spare), dst=self.spare)
        cv2.multiply(self.spare, field, dst=by_excess, dtype=cv2.CV_32F)
        cv2.min(cv2.add(by_excess, top, dst=by_excess), 255.0, dst=by_excess)

        # share = 1 - (I - S).(F - S) / |F - S|^2; the line's direction first, which also tells how near I lies to it
        line = model.figure - model.screen
        whole = np.sqrt(np.maximum((line * line).sum(2), 1))
        along.fill(0)
        length2.fill(_NOISE2)
        for difference, direction in zip(self.differences, cv2.split(line / whole[..., None]), strict=True):
            cv2.multiply(difference, cv2.resize(direction, self.size, dst=field), dst=field)
            cv2.add(along, field, dst=along)
            cv2.add(length2, cv2.multiply(difference, difference, dst=field), dst=length2)
        cosine = cv2.divide(cv2.multiply(along, along, dst=field), length2, dst=length2)
        cv2.multiply(cosine, cosine, dst=cosine)
        cv2.multiply(cosine, cosine, dst=cosine)  # cos^8: another colour than the figure's hardly counts
        by_place = cv2.multiply(along, cv2.resize(gain / whole, self.size, dst=field), dst=along)
        cv2.add(by_place, top - gain, dst=by_place)

        # The place may only lower alpha: the figure's excess is never more than the zero that the first key assumes.
        less = cv2.min(cv2.subtract(by_place, by_excess, dst=along), 0.0, dst=along)
        cv2.multiply(less, cosine, dst=less)
        cv2.multiply(less, cv2.resize(model.trust * (1 - model.solid), self.size, dst=field), dst=less)
        cv2.add(by_excess, less, dst=alpha, dtype=cv2.CV_8U)

    def _unmix(self, alpha: UInt8) -> None:
        """Takes the screen's share out of the planes: S + (I - S) / alpha."""
        more = self.floats[0]
        cv2.LUT(alpha, _UNMIX, dst=more)
        for plane, difference in zip(self.planes, self.differences, strict=True):
            cv2.add(plane, cv2.multiply(difference, more, dst=difference), dst=plane, dtype=cv2.CV_8U)

    def _despilled(self, primary: int, out: UInt8) -> UInt8:
        """The planes as out [H,W,3], with the primary no larger than the larger of the other two."""
        least = cv2.min(self.planes[primary], others(self.planes, primary, dst=self.spare), dst=self.spare)
        cv2.merge([least if channel == primary else plane for channel, plane in enumerate(self.planes)], dst=out)
        return out
