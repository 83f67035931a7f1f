"""`mucd compare` as a job: `ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- python jobs/compare.py /shared/run /shared/other`."""

import sys

from mucd_ray.cli import run_as_job

if __name__ == "__main__":
    sys.exit(run_as_job("compare"))
