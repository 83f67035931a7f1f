"""`mucd attack`: attacks on a dataset against defences that are trained on it."""

import argparse
import json

from mucd_ray.cli.options import Parser, add_command, add_environment, add_resources, keys, path
from mucd_ray.cli.training import add_run
from mucd_ray.errors import MucdError

# The constants of a defence that are options here; it has what `mucd run` gives it by default otherwise.
WITHOUT_NOISE = ("hidden", "train_steps", "batch_size")
DEFENCES = {
    "undefended": ("--mechanism bag --top-share 1", WITHOUT_NOISE),
    "gaussian": ("--mechanism gaussian", ("steps",)),
    "bag": ("--mechanism bag", ("bag_size", *WITHOUT_NOISE)),
    "bag-then-noise": ("--mechanism bag-then-noise", ("steps",)),
    "partition": ("--mechanism partition", ("parts", *WITHOUT_NOISE)),
    "neighbours": ("--mechanism neighbours", ("neighbours",)),
}
# Options of `mucd run` that all defences are given.
SHARED = ("unit", "fraction", "threat", "eta", "card", "states", "make_kwargs", "max_episode_steps", "return_range", "actors", "device", "address")


def numbers(text: str) -> tuple[int, ...]:
    """"1,5,20"."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r:.100} must be whole numbers with commas between, such as 1,5,20") from None
    return found


def add_attack(commands):
    sub = add_command(
        commands, "attack", attack,
        "Poison a dataset, train defences on it again, and hold what is left against what was certified; beside them a plain clone of all data, undefended. The same command continues what was cut off. Exit status 1 if a bound is beaten beyond its eta.",
        "mucd attack cartpole/mixed-v0 --defences bag,partition --attacks all --budgets 1,5 --instances 100 --storage runs/attacks",
    )
    sub.add_argument("dataset", help="Minari dataset id (local, or under MINARI_DATASETS_PATH)")
    sub.add_argument("--storage", type=path, required=True, help="folder of the study, with a run folder for every cell, and results.json and attack.png; cells that are finished are kept")
    sub.add_argument("--defences", type=keys, required=True, metavar="NAME,...", help=f"some of {', '.join(DEFENCES)}; undefended stands beside them in any case")
    sub.add_argument("--attacks", type=keys, default=("all",), metavar="NAME,...", help="attacks, see docs/attacks.md (default: all that fit the actions and the threat)")
    sub.add_argument("--budgets", type=numbers, required=True, metavar="R,...", help="r, each: how many units an attack may insert and remove, as the threat counts them")
    sub.add_argument("--instances", type=int, default=100, help="instances of each defence on each dataset; of neighbours episodes")
    sub.add_argument("--unit", choices=["transition", "trajectory"], default="trajectory", help="what an attack changes, and what certificates count")
    sub.add_argument("--fraction", type=float, help="as of `mucd run`")
    sub.add_argument("--threat", default="symmetric", choices=["symmetric", "insert", "remove", "substitute"], help="how D' may differ from D")
    sub.add_argument("--eta", type=float, default=0.001, help="probability that a certificate may be wrong; all tests against them together share as much again")
    sub.add_argument("--per-unit", type=float, metavar="B", help="of the attack observations: largest L2 norm of what is added to one unit (default: as far as observations lie from their mean)")
    sub.add_argument("--total", type=float, metavar="S", help="of the attack observations: largest sum of these norms")
    sub.add_argument("--flip", type=float, default=0.5, metavar="BETA", help="of the attack label-flips: probability of each label")
    sub.add_argument("--seed", type=int, default=0, help="of the attacks; the secrets of training are drawn anew for every run")
    sub.add_argument("--states", type=int, help="as of `mucd run`")
    sub.add_argument("--card", type=path, help="as of `mucd run`")
    group = sub.add_argument_group("defences", "public constants as of `mucd run`, each given to the defences that read it")
    for name in ("bag_size", "parts", "neighbours", "steps", "train_steps", "batch_size"):
        group.add_argument("--" + name.replace("_", "-"), type=int, metavar="N")
    group.add_argument("--hidden", metavar="LIST")
    add_environment(sub)
    add_resources(sub, of_run=True)


def attack(options, out):
    from mucd_ray.attack.budget import Budget
    from mucd_ray.service.runs.attacked import UNDEFENDED, Study, side_by_side, tell_beaten
    from mucd_ray.service.runs.attacked import attack as run_study

    names = dict.fromkeys((*options.defences, UNDEFENDED))
    for name in names:
        if name not in DEFENCES:
            raise MucdError(f"defence {name[:60]!r} is unknown: use some of {', '.join(DEFENCES)}")
    budget = Budget(radius=1, unit=options.unit, threat=options.threat, per_unit=options.per_unit, total=options.total, flip=options.flip)
    for radius in options.budgets:
        Budget(radius=radius)
    if options.seed < 0:
        raise MucdError(f"seed {options.seed} must be at least 0")
    results = run_study(Study(
        dataset=options.dataset, defences={name: _options_of_run(name, options) for name in names}, attacks=None if options.attacks == ("all",) else tuple(dict.fromkeys(options.attacks)),
        budgets=tuple(sorted(set(options.budgets))), budget=budget, storage=options.storage, seed=options.seed, eta=options.eta,
    ))
    out(json.dumps(results) if options.json else side_by_side(results))
    return tell_beaten(results)


def _options_of_run(defence: str, options):
    """Those of `mucd run` with which a defence is trained."""
    parser = Parser(prog="mucd attack")
    add_run(parser.add_subparsers())
    fixed, own = DEFENCES[defence]
    given = {name: getattr(options, name) for name in (*SHARED, *own)} | {("rollouts" if defence == "neighbours" else "instances"): options.instances}
    parsed = parser.parse_args(["run", options.dataset, "--storage", options.storage, *fixed.split()])
    for name, value in given.items():
        if value is not None:
            setattr(parsed, name, value)
    for name in ("imports", "instances_per_actor", "gpus_per_actor", "gpu_type", "wait_for_nodes", "lease", "runtime_env"):
        setattr(parsed, name, getattr(options, name))
    return parsed
