"""
Settings for a CPU that only work before torch is loaded. Every script imports this file first.

The numbers behind them are in experiments/LOG.md.
"""
import ctypes
import os
import sys

# How often an idle thread looks for work before it sleeps. OpenMP's default is 300,000, which
# makes a step ten times slower when another program uses one of the cores.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# How many prepared kernels oneDNN keeps. Its default of 1,024 takes half a gigabyte in sampling.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def keep_freed_memory():
    """Let the C library keep freed memory: to ask for it again costs up to a third of a step."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-1, 1 << 30)       # M_TRIM_THRESHOLD
        libc.mallopt(-4, 0)             # M_MMAP_MAX: take large blocks from the heap too
