"""Runs a pickled RunConfig and writes down which samples it is given; also what a killed process runs."""

import json
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

from pixio_pretrain import RunConfig, run, train
from pixio_pretrain.data import Loaded, Loader


def train_and_record(config: RunConfig, keys: Path) -> Path:
    """Train; ``keys`` comes to hold a file per rank with a line per batch: its place and the keys of its samples."""

    class Recorder(Loader):
        def __iter__(self) -> Iterator[Loaded]:
            for loaded in super().__iter__():
                if self.seed == config.seed:  # held-out samples are of another seed
                    line = json.dumps([self.state_dict()["given"], loaded.keys])
                    with (keys / f"{self.rank}.jsonl").open("a") as file:
                        file.write(line + "\n")
                yield loaded

    keys.mkdir(exist_ok=True)
    run.Loader = Recorder
    try:
        return train(config)
    finally:
        run.Loader = Loader


if __name__ == "__main__":
    if "RANK" in os.environ:
        sys.stderr.write(f"rank {os.environ['RANK']} is {os.getpid()}\n")
    train_and_record(pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]))  # noqa: S301
