"""`mucd tune` as a job: `ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- python jobs/tune.py --simulate Acrobot-v1 --storage /shared/tuning`."""

import sys

from mucd_ray.cli import run_as_job

if __name__ == "__main__":
    sys.exit(run_as_job("tune"))
