"""`mucd certify` as a job: `ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- python jobs/certify.py /shared/run --eta 0.01`."""

import sys

from mucd_ray.cli import run_as_job

if __name__ == "__main__":
    sys.exit(run_as_job("certify"))
