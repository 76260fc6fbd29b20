"""Hard cuts from the scan's statistics.

Measured on films, animation held on threes, dancers and fades: the test against the maximum of the neighbours (not
their mean or median) is what keeps held frames and camera shake from being cuts; HSV differences fail in the dark.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEAST_DIFFERENCE = 6.0  # mean |difference| of YCbCr, of 255
NEIGHBOURS = 5  # frames on each side
TIMES_NEIGHBOURS = 2.0
MOST_CORRELATION = 0.6  # of the lumas on both sides of a cut
CLOSEST = 12  # frames; of two cuts closer than this the larger stays


def detect_cuts(diff: NDArray[np.float32], corr: NDArray[np.float32]) -> NDArray[np.int64]:
    """First frames of new shots, int64, ascending; frame 0 is not among them.

    Args:
        diff: float32 [n], `Scan.diff`.
        corr: float32 [n], `Scan.corr`.
    """
    n = len(diff)
    padded = np.pad(diff, NEIGHBOURS)
    around = np.zeros(n, np.float32)
    for step in range(1, NEIGHBOURS + 1):
        for shift in (-step, step):
            np.maximum(around, padded[NEIGHBOURS + shift : NEIGHBOURS + shift + n], out=around)
    found = (diff >= LEAST_DIFFERENCE) & (diff >= TIMES_NEIGHBOURS * around) & (corr < MOST_CORRELATION)
    cuts: list[int] = []
    for cut in np.flatnonzero(found):
        if cuts and cut - cuts[-1] < CLOSEST:
            if diff[cut] > diff[cuts[-1]]:
                cuts[-1] = int(cut)
        elif cut > 0:
            cuts.append(int(cut))
    return np.array(cuts, np.int64)
