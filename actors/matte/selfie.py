"""MediaPipe's selfie segmentation: people, frame by frame, on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import onnxruntime

from actors.frames import Carry, FrameBatch, UInt8
from actors.matte.edges import Float, refine
from actors.model import Model, Setup
from cluster.errors import WeightsError

_SIDE = 256
#: Rows and columns at the border where the network's zero padding pulls probabilities down (measured: 1.0 becomes
#: 0.65 in the last two rows across a body that the frame cuts off). Their inner neighbours are repeated instead.
_BORDER = 2


class Selfie:
    """Alpha and foreground of people. Stateless; no params.

    The network sees the whole frame squeezed to 256x256, as MediaPipe feeds it; `edges.refine` brings its coarse
    probability to the frame's size.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.input = session.get_inputs()[0].name

    def __call__(self, batch: FrameBatch, carry: Carry, params: Mapping[str, Any]) -> tuple[FrameBatch, Carry]:  # noqa: ARG002
        rgb, alpha = np.empty_like(batch.rgb), np.empty(batch.rgb.shape[:3], np.uint8)
        for index, frame in enumerate(batch.rgb):
            rgb[index], alpha[index] = refine(frame, self._probability(frame))
        return batch.with_pixels(rgb, alpha), {}

    def _probability(self, frame: UInt8) -> Float:
        """Of a person, float32 [256,256]."""
        small = cv2.resize(frame, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        probability: Float = self.session.run(None, {self.input: small[None]})[0][0, :, :, 0]
        return np.pad(probability[_BORDER:-_BORDER, _BORDER:-_BORDER], _BORDER, mode="edge")


def load_selfie(setup: Setup) -> Model:
    """Opens the ONNX file on one CPU thread, wherever the setup's device is: it takes a few milliseconds a frame.

    Raises:
        WeightsError: the file is not an ONNX network, or not one of [1,256,256,3] to [1,256,256,1].
    """
    (path,) = setup.weights
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's error classes are private and unrelated to each other
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(path.name, f"is not a readable ONNX file ({reason})", remedy="fetch it again") from error
    shapes = [list(port.shape) for port in (*session.get_inputs(), *session.get_outputs())]
    if shapes != [[1, _SIDE, _SIDE, 3], [1, _SIDE, _SIDE, 1]]:
        raise WeightsError(path.name, f"has ports {shapes}, not selfie segmentation's", remedy="import the right file")
    return Selfie(session)
