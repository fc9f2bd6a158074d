import platform
import subprocess
import sys

import pytest

# Each of ten large arrays is touched, freed, and made again; a page fault counts every page the kernel gives out.
COUNT_FAULTS = """
import resource, sys
import numpy as np
from pixio_pretrain.heap import keep_freed_memory

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
    out = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True).stdout
    plain, kept = map(int, out.split())
    assert kept < plain / 10
