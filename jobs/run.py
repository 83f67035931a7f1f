"""`mucd run` as a job: `ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- python jobs/run.py DATASET --out /shared/run`.

A job's working directory is a copy that disappears: --out must be an absolute path that all nodes share.
"""

import sys
from pathlib import Path

from mucd_ray.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    out = next((arguments[k + 1] for k, word in enumerate(arguments[:-1]) if word == "--out"), None)
    if out is not None and not Path(out).is_absolute():
        print(f"jobs/run.py: error: --out {out} is relative: give an absolute path on storage that all nodes share", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(["run", *arguments]))
