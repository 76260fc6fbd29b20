"""A card's own sensors through NVIDIA's management library (NVML): how busy, how hot, how full, and who is on it.

NVML needs no CUDA context, so that anything may ask. Without a driver there is nothing to ask, which is said once; a
card that falls off its bus, or a driver that hangs, must harm nobody who only wanted to know its temperature: nothing
here raises, and every question has an end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

#: An answer takes a millisecond; a driver that recovers from a fault takes for ever.
_ANSWER_SECONDS = 1.0
#: The first question wakes a sleeping card.
_WAKE_SECONDS = 5.0
#: Readings are shared for so long: who limits the heat and who reports it look at the same one.
_FRESH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Sensors:
    """What a card said; None for what this card, driver or MIG slice does not tell.

    Attributes:
        index: its number as `nvidia-smi` counts.
        uuid: `GPU-…`, or `MIG-…` for a slice.
        name: the product's name.
        utilisation: share of the last moments in which it computed, 0 to 1.
        temperature: of the chip, in °C.
        power: in watts.
        memory_used, memory_total: bytes; those used by everybody, the driver included.
        processes: pids with a compute context, as the driver counts them: in a container, those of its host.
    """

    index: int
    uuid: str
    name: str
    utilisation: float | None = None
    temperature: float | None = None
    power: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    processes: tuple[int, ...] | None = None


def visible_card(environ: Mapping[str, str]) -> str:
    """The card that a process computes on by default: the first of CUDA_VISIBLE_DEVICES, which Ray sets in a replica
    to an index or a UUID; empty when it names none.

    CUDA may count cards in another order than NVML (fastest first). Who has a context knows better: give
    `str(torch.cuda.get_device_properties(0).uuid)` to `Card`.
    """
    named = environ.get("CUDA_VISIBLE_DEVICES")
    first = "0" if named is None else named.split(",")[0].strip()
    return "" if first.startswith("-") or first == "NoDevFiles" else first


class Card:
    """One card, which may be asked any time from any thread.

    Args:
        which: an index, a UUID with or without `GPU-` before it, or a MIG slice's; empty for no card at all.
        nvml: the library; None loads NVIDIA's.
        clock: seconds that only go forward.
    """

    def __init__(self, which: str, nvml: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.which = which
        #: Why nothing is read: no driver, no such card, no answer. Empty while the card answers, or was not asked yet.
        self.absence = "" if which else "no GPU is visible here"
        self._clock = clock
        self._nvml = nvml
        self._started = False
        self._gone = not which
        self._asking = threading.Lock()
        self._stuck: threading.Thread | None = None
        self._last: tuple[float, Sensors | None] | None = None
        if self.absence:
            log.info("%s: no temperature limit, no GPU metrics", self.absence)

    def read(self) -> Sensors | None:
        """The sensors now, or as they were less than a second ago; None when nothing answers in time."""
        if self._gone:
            return None
        with self._asking:
            now = self._clock()
            if self._last is None or now - self._last[0] >= _FRESH_SECONDS:
                self._last = now, self._bounded(self._read, _ANSWER_SECONDS if self._started else _WAKE_SECONDS)
            return self._last[1]

    def temperature(self) -> float | None:
        """Degrees Celsius, or None when the card does not say."""
        sensors = self.read()
        return None if sensors is None else sensors.temperature

    def _bounded(self, work: Callable[[], T | None], seconds: float) -> T | None:
        """The work's answer, or None when it takes longer; then nothing is asked until that question has ended."""
        if self._stuck is not None and self._stuck.is_alive():
            return None
        answers: list[T | None] = []
        thread = threading.Thread(target=lambda: answers.append(work()), name="nvml", daemon=True)
        thread.start()
        thread.join(seconds)
        if not answers:
            self._stuck = thread
            self._absent(f"the NVIDIA driver does not answer within {seconds:g} s")
            return None
        self._stuck = None
        return answers[0]

    def _read(self) -> Sensors | None:
        try:
            if not self._started:
                self._start()
            sensors = self._ask_all(self._handle())
        except Exception as error:  # whatever NVML or its absence makes of it: a sensor that fails is no failure
            self._absent(f"GPU {self.which} cannot be asked ({error})")
            return None
        if self.absence:
            log.info("GPU %s answers again", self.which)
            self.absence = ""
        return sensors

    def _start(self) -> None:
        import pynvml

        nvml = self._nvml or pynvml
        try:
            nvml.nvmlInit()
        except Exception:
            # It was not there when this process started; it will not be before the next one.
            self._gone = True
            raise
        self._nvml, self._started = nvml, True

    def _handle(self) -> Any:
        if self.which.isdecimal():
            return self._nvml.nvmlDeviceGetHandleByIndex(int(self.which))
        uuid = self.which if self.which.startswith(("GPU-", "MIG-")) else f"GPU-{self.which}"
        return self._nvml.nvmlDeviceGetHandleByUUID(uuid)

    def _ask_all(self, device: Any) -> Sensors:
        nvml = self._nvml
        # A MIG slice has memory and processes of its own; heat, power and number are its card's.
        whole = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device) if self.which.startswith("MIG-") else device
        rates = self._told("nvmlDeviceGetUtilizationRates", device)
        memory = self._told("nvmlDeviceGetMemoryInfo", device)
        milliwatts = self._told("nvmlDeviceGetPowerUsage", whole)
        heat = self._told("nvmlDeviceGetTemperature", whole, nvml.NVML_TEMPERATURE_GPU)
        running = self._told("nvmlDeviceGetComputeRunningProcesses", device)
        return Sensors(
            index=nvml.nvmlDeviceGetIndex(whole),
            uuid=nvml.nvmlDeviceGetUUID(device),
            name=nvml.nvmlDeviceGetName(whole),
            utilisation=None if rates is None else rates.gpu / 100,
            temperature=None if heat is None else float(heat),
            power=None if milliwatts is None else milliwatts / 1000,
            memory_used=None if memory is None else int(memory.used),
            memory_total=None if memory is None else int(memory.total),
            processes=None if running is None else tuple(process.pid for process in running),
        )

    def _told(self, question: str, *arguments: Any) -> Any:
        """The answer, or None: not every card has every sensor, nor every version of the library every question."""
        try:
            return getattr(self._nvml, question)(*arguments)
        except Exception:
            return None

    def _absent(self, why: str) -> None:
        if why != self.absence:
            # A machine without a driver is ordinary; a card that answered and does so no more is not.
            level = logging.WARNING if self._started else logging.INFO
            log.log(level, "%s: no temperature limit, no GPU metrics", why)
        self.absence = why
