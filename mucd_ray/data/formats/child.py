"""The process that reads arrow and parquet files (`columns.py`), as its parent sees it."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from mucd_ray.files import read_json

MOST_ANSWER = 1 << 22
# What a child may take beside a few times the bytes of a file and of its rows.
SPARE_BYTES, SPARE_SECONDS, BYTES_PER_SECOND = 1 << 30, 60, 1 << 22
PROGRAM = Path(__file__).with_name("columns.py")


class Child:
    """A context manager, since the process has to end."""

    def __init__(self):
        # Not beside its own folder's files, which have names of packages. Of what its libraries print nothing is read.
        self.process = subprocess.Popen(
            [sys.executable, "-P", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"},
        )

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *error) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, question: dict, content: bytes, most_bytes: int) -> tuple[dict, dict[str, np.ndarray]]:
        """The answer to a question about a file (`columns.main`) and the arrays that come with it.

        Args:
            most_bytes: what its columns may unpack to.
        Raises:
            ValueError: the file is not what it should be, or ends the process.
        """
        work = 2 * len(content) + 3 * most_bytes
        seconds = SPARE_SECONDS + work // BYTES_PER_SECOND
        try:
            self.process.stdin.write(json.dumps(question | {"size": len(content), "memory": SPARE_BYTES + work, "seconds": seconds}).encode() + b"\n")
            self.process.stdin.write(content)
            self.process.stdin.flush()
            line = self.process.stdout.readline(MOST_ANSWER)
            if not line:
                raise EOFError
            answer = read_json(line, "the answer")
            if "error" in answer:
                raise ValueError(answer["error"])
            return answer, {name: self._array(np.dtype(dtype), shape, work) for name, (dtype, shape) in answer["columns"].items()}
        except (EOFError, BrokenPipeError):
            ended = -self.process.wait()
            cause = f"took more than {seconds} seconds" if ended == signal.SIGXCPU else f"ended by {signal.Signals(ended).name if ended > 0 else 'itself'}"
            raise ValueError(f"a file is damaged: the process that read it with pyarrow {cause}") from None

    def _array(self, dtype: np.dtype, shape: list[int], most_bytes: int) -> np.ndarray:
        # A child that ran the file's code would say anything.
        if dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize > most_bytes:
            raise ValueError(f"the process that read it gives {dtype} {shape}")
        array = np.empty(shape, dtype)
        size = self.process.stdout.readinto(array.reshape(-1).data.cast("B")) if array.size else 0
        if size < array.nbytes:
            raise EOFError
        return array
