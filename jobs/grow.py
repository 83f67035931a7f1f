"""`mucd grow` as a job: `ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- python jobs/grow.py /shared/run --instances 3000`."""

import sys

from mucd_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["grow", *sys.argv[1:]]))
