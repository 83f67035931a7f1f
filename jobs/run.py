"""`mucd run` as a job: `ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- python jobs/run.py DATASET --storage /shared/run`."""

import sys

from mucd_ray.cli import run_as_job

if __name__ == "__main__":
    sys.exit(run_as_job("run"))
