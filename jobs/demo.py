"""Record a real dataset, train hundreds of instances on Ray, certify and report: `python jobs/demo.py lunarlander|acrobot|cartpole|freeway`."""

import argparse
import os
import sys
import time
from pathlib import Path

# Without a choice of the user's, recordings stay beside the runs and the user's own Minari folder is left alone.
os.environ.setdefault("MINARI_DATASETS_PATH", str(Path("runs/datasets").resolve()))

from mucd_ray.cli import progress_bar
from mucd_ray.data.formats.minari import local_datasets
from mucd_ray.data.recording.record import record
from mucd_ray.errors import MucdError
from mucd_ray.examples import CERTIFIED_SEED, EXAMPLES
from mucd_ray.service.runs.session import execute
from mucd_ray.service.runs.summary import describe


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("example", choices=sorted(EXAMPLES), nargs="?", default="lunarlander")
    parser.add_argument("--instances", type=int, help="default: 300 on LunarLander, 1000 elsewhere")
    parser.add_argument("--out", help="run folder (default: runs/EXAMPLE)")
    options = parser.parse_args()
    example = EXAMPLES[options.example]
    start = time.monotonic()
    try:
        Path(os.environ["MINARI_DATASETS_PATH"]).mkdir(parents=True, exist_ok=True)
        if example.dataset not in local_datasets():
            with progress_bar("recording", "transition") as progress:
                record(example.env_id, None, example.transitions, CERTIFIED_SEED, example.dataset, progress=progress)
        summary = execute(example.request(options.instances or example.instances), options.out or f"runs/{options.example}")
    except MucdError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    print(f"\n{options.example}: {example.env_id}, dataset {example.dataset}\n{describe(summary)}")
    print(f"check it     .venv/bin/mucd verify {summary['certificate']}\n{time.monotonic() - start:.0f} seconds in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
