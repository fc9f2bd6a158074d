import subprocess
import sys

import numpy as np
import pytest

from pixio_pretrain.data import open_frames, open_source
from pixio_robot.errors import DataError


def test_generated_images_follow_from_their_numbers() -> None:
    frames, again = open_frames("synthetic:50x32"), open_frames("synthetic:50x32")
    assert len(frames) == 50
    assert frames.image(3).size == (32, 32)
    assert np.array_equal(np.asarray(frames.image(3)), np.asarray(again.image(3)))
    assert not np.array_equal(np.asarray(frames.image(3)), np.asarray(frames.image(4)))


def test_parts_of_generated_images_are_disjoint_and_whole() -> None:
    frames = open_source("synthetic:50x8")
    train, held_out = (dict(part.visit()) for part in frames.split(0.1))
    whole = dict(frames.visit())
    assert (len(train), len(held_out)) == (45, 5)
    assert train | held_out == whole
    with pytest.raises(DataError, match="bring at least two"):
        open_source("synthetic:1").split(0.5)


MEMORY = """
import resource
from itertools import islice
import numpy as np
from pixio_pretrain.data import Loader, open_source

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

before = peak()
train, _ = open_source("synthetic:{count}x8").split(0.05)
loader = Loader(train, lambda image, random: {{"images": np.asarray(image)}}, batch_size=64, seed=0)
batches = iter(loader)
next(batches)
begun = peak()
for _ in islice(batches, 300):
    pass
print(begun - before, peak() - begun)
"""


@pytest.mark.slow
def test_ten_million_samples_cost_a_few_bytes_each_and_no_more_as_time_goes_by() -> None:
    grown = {}
    for count in (10_000, 10_000_000):
        code = MEMORY.format(count=count)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        grown[count] = [int(number) for number in done.stdout.split()]
    assert grown[10_000_000][0] - grown[10_000][0] < 100  # MB: ten bytes a sample
    assert grown[10_000_000][1] < 20
