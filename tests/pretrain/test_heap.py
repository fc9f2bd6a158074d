import platform
import subprocess
import sys

import pytest

from pixio_pretrain import heap

# Each of ten large arrays is touched, freed, and made again; a page fault counts every page the kernel gives out.
COUNT_FAULTS = """
import resource, runpy, sys
import numpy as np

keep_freed_memory = runpy.run_path(sys.argv[1])["keep_freed_memory"]  # without importing PyTorch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def touch():
    before = faults()
    for _ in range(10):
        np.ones(2**23)  # 64 MiB
    return faults() - before

touch()
plain = touch()
assert keep_freed_memory()
touch()
print(plain, touch())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_the_kernel_gives_memory_out_once() -> None:
    command = [sys.executable, "-c", COUNT_FAULTS, heap.__file__]
    plain, kept = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert kept < plain / 10
