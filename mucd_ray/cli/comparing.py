"""`mucd compare`: finished runs side by side, or every defence on one dataset."""

import json

from mucd_ray.cli.defences import DEFENCES, UNDEFENDED, add_constants, add_data, add_defences, defences_of
from mucd_ray.cli.options import add_command, add_environment, add_resources, path
from mucd_ray.errors import MucdError

COMPARED = tuple(name for name in DEFENCES if name != UNDEFENDED)
# The network of all that is trained, where nobody says which.
HIDDEN = "64,64"


def add_compare(commands):
    sub = add_command(
        commands, "compare", compare,
        "Certified runs side by side; or, with --defences, every defence trained on one dataset with the same network, states and evaluation: one table, one figure, and who is ahead in words. The same command continues what was cut off.",
        "mucd compare runs/acrobot runs/tuned; mucd compare cartpole/mixed-v0 --defences gaussian,bag,partition,parl,tparl,dparl,fa,roe,neighbours --storage runs/all",
    )
    sub.add_argument("runs", type=path, nargs="+", metavar="RUN", help="run folder, or its URL; with --defences the one Minari dataset id")
    add_defences(sub, required=False, names=COMPARED)
    sub.add_argument("--storage", type=path, help="with --defences: folder of the comparison, with a folder for every defence, and results.json and compare.png; defences that are finished are kept")
    add_data(sub)
    sub.add_argument("--unit", choices=["transition", "trajectory"], help="what an attacker changes, and what certificates count (default: trajectory; of labelled images, transition)")
    sub.add_argument("--eta", type=float, default=0.001, help="probability that a statement may be wrong")
    sub.add_argument("--states-file", type=path, help="as of `mucd run` (default: the first defence's held-out instances choose the states of all)")
    sub.add_argument("--trusted-states", metavar="DATASET", help="as of `mucd run`")
    sub.add_argument("--no-environment", action="store_true", help="as of `mucd run`")
    sub.add_argument("--features", metavar="NAME", help="as of `mucd run`")
    sub.add_argument("--policy", default="vote", choices=["instance", "vote"], help="vote also certifies the voted policy's return, where it can be; instance saves the time")
    sub.add_argument("--nodes", type=int, help="as of `mucd run`, with --policy vote")
    add_constants(sub)
    add_environment(sub)
    add_resources(sub, of_run=True)


def compare(options, out):
    if options.defences is None:
        from mucd_ray.service.runs.compare import compare_runs, side_by_side

        if options.storage is not None:
            raise MucdError(f"--storage {options.storage} is for --defences: name some of {', '.join(COMPARED)}, or leave it out")
        rows = compare_runs(options.runs)
        out(json.dumps(rows) if options.json else side_by_side(rows))
        return

    from mucd_ray.service.runs.comparison import Comparison, compare_defences, in_a_table

    if len(options.runs) != 1:
        raise MucdError(f"{len(options.runs)} datasets are given with --defences: compare the defences on one")
    if options.storage is None:
        raise MucdError("--defences needs --storage FOLDER, where the runs are kept")
    (options.dataset,) = options.runs
    options.hidden = HIDDEN if options.hidden is None else options.hidden
    results = compare_defences(Comparison(dataset=options.dataset, defences=tuple(defences_of(options, COMPARED)), storage=options.storage))
    out(json.dumps(results) if options.json else in_a_table(results))
