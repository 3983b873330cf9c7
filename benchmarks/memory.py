"""Memory of this process, as Linux counts it; `ru_maxrss` would begin at that of the process that started it."""

from pathlib import Path


def resident_bytes(field: str) -> int:
    """Bytes that this process has (`VmRSS`) or had at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) << 10
