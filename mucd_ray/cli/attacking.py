"""`mucd attack`: attacks on a dataset against defences that are trained on it."""

import argparse
import json

from mucd_ray.cli.defences import DEFENCES, UNDEFENDED, add_constants, add_data, add_defences, defences_of
from mucd_ray.cli.options import add_command, add_environment, add_resources, keys, path
from mucd_ray.errors import MucdError


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
    add_defences(sub, DEFENCES, required=True, more="; undefended stands beside them in any case")
    sub.add_argument("--attacks", type=keys, default=("all",), metavar="NAME,...", help="attacks, see docs/attacks.md (default: all that fit the actions and the threat)")
    sub.add_argument("--budgets", type=numbers, required=True, metavar="R,...", help="r, each: how many units an attack may insert and remove, as the threat counts them")
    add_data(sub)
    sub.add_argument("--unit", choices=["transition", "trajectory"], default="trajectory", help="what an attack changes, and what certificates count")
    sub.add_argument("--eta", type=float, default=0.001, help="probability that a certificate may be wrong; all tests against them together share as much again")
    sub.add_argument("--per-unit", type=float, metavar="B", help="of the attack observations: largest L2 norm of what is added to one unit (default: as far as observations lie from their mean)")
    sub.add_argument("--total", type=float, metavar="S", help="of the attack observations: largest sum of these norms")
    sub.add_argument("--flip", type=float, default=0.5, metavar="BETA", help="of the attack label-flips: probability of each label")
    sub.add_argument("--seed", type=int, default=0, help="of the attacks; the secrets of training are drawn anew for every run")
    add_constants(sub)
    add_environment(sub)
    add_resources(sub, of_run=True)


def attack(options, out):
    from mucd_ray.attack.budget import Budget
    from mucd_ray.service.runs.attacked import Study, side_by_side, tell_beaten
    from mucd_ray.service.runs.attacked import attack as run_study

    options.defences = (*options.defences, UNDEFENDED)
    defences = {defence.name: defence for defence in defences_of(options, DEFENCES)}
    budget = Budget(radius=1, unit=options.unit, threat=options.threat, per_unit=options.per_unit, total=options.total, flip=options.flip)
    for radius in options.budgets:
        Budget(radius=radius)
    if options.seed < 0:
        raise MucdError(f"seed {options.seed} must be at least 0")
    results = run_study(Study(
        dataset=options.dataset, defences=defences, attacks=None if options.attacks == ("all",) else tuple(dict.fromkeys(options.attacks)),
        budgets=tuple(sorted(set(options.budgets))), budget=budget, storage=options.storage, seed=options.seed, eta=options.eta,
    ))
    out(json.dumps(results) if options.json else side_by_side(results))
    return tell_beaten(results)
