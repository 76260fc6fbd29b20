"""What a process needs to run networks fast on a CPU. Imports nothing heavy."""

from __future__ import annotations

#: Environment of such a process; glibc and OpenMP read it when the process starts.
#:
#: glibc gives every large block back to the kernel as it is freed, and the next one is faulted in page by page: a
#: third of the time of Real-ESRGAN's compact networks. Kept, memory peaks higher.
#: Threads that wait for work spin a moment, then sleep: networks of two processes may share the cores.
CPU_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "GOMP_SPINCOUNT": "1000",
}
