"""Defences by name, as `mucd attack` and `mucd compare` train them: each a few options of `mucd run`, and for a vote rule of `mucd certify`."""

from dataclasses import dataclass

from mucd_ray.cli.options import Parser, keys, path
from mucd_ray.cli.training import add_run
from mucd_ray.errors import MucdError

WITHOUT_NOISE = ("hidden", "train_steps", "batch_size")


@dataclass(frozen=True, kw_only=True)
class Named:
    """A defence that can be named.

    Attributes:
        fixed: options of `mucd run`.
        own: constants that are options here; it has what `mucd run` gives it by default otherwise.
        rule: of a vote rule, whose policies are those of `trained`: what `mucd certify --rule` is told.
        trained: the folder of policies that several defences share; None: its own.
    """

    fixed: str
    own: tuple[str, ...]
    rule: str | None = None
    trained: str | None = None


def _by_rule(rule: str) -> Named:
    return Named(fixed="--mechanism partition", own=("parts", *WITHOUT_NOISE), rule=rule, trained="partition")


UNDEFENDED = "undefended"
DEFENCES = {
    UNDEFENDED: Named(fixed="--mechanism bag --top-share 1", own=WITHOUT_NOISE),
    "gaussian": Named(fixed="--mechanism gaussian", own=("steps", "hidden")),
    "bag": Named(fixed="--mechanism bag", own=("bag_size", *WITHOUT_NOISE)),
    "bag-then-noise": Named(fixed="--mechanism bag-then-noise", own=("steps", "hidden")),
    "partition": Named(fixed="--mechanism partition", own=("parts", *WITHOUT_NOISE)),
    "parl": _by_rule("parl"),
    "tparl": _by_rule("tparl"),
    "dparl": _by_rule("dparl"),
    "roe": _by_rule("roe"),
    "fa": Named(fixed="--mechanism partition", own=("parts", "spread", *WITHOUT_NOISE), rule="fa", trained="spread"),
    "neighbours": Named(fixed="--mechanism neighbours", own=("neighbours",)),
}
CONSTANTS = ("bag_size", "parts", "spread", "neighbours", "steps", "train_steps", "batch_size")
# Options of `mucd run` that all defences are given; those of `RESOURCES` always have a value.
SHARED = ("unit", "fraction", "threat", "eta", "card", "features", "states", "states_file", "trusted_states", "make_kwargs", "max_episode_steps", "return_range", "actors", "device", "address")
RESOURCES = ("imports", "instances_per_actor", "gpus_per_actor", "gpu_type", "wait_for_nodes", "lease", "runtime_env")
# In how many parts each unit is for Finite Aggregation, where nobody says so.
SPREAD = 2


def add_defences(sub, names, required: bool, more: str = "") -> None:
    sub.add_argument("--defences", type=keys, required=required, metavar="NAME,...", help=f"some of {', '.join(names)}{more}")


def add_data(sub) -> None:
    """What all defences share."""
    sub.add_argument("--instances", type=int, default=100, help="instances of each defence on each dataset; of neighbours episodes")
    sub.add_argument("--fraction", type=float, help="as of `mucd run`")
    sub.add_argument("--threat", default="symmetric", choices=["symmetric", "insert", "remove", "substitute"], help="how D' may differ from D")
    sub.add_argument("--states", type=int, help="as of `mucd run`")
    sub.add_argument("--card", type=path, help="as of `mucd run`")
    sub.add_argument("--episodes", type=int, help="as of `mucd certify`")


def add_constants(sub) -> None:
    group = sub.add_argument_group("defences", "public constants as of `mucd run` and `mucd certify`, each given to the defences that read it")
    for name in CONSTANTS:
        group.add_argument("--" + name.replace("_", "-"), type=int, metavar="N", help=f"of fa (default: {SPREAD})" if name == "spread" else None)
    group.add_argument("--hidden", metavar="LIST", help="widths of hidden layers of every network that is trained, such as 64,64")
    group.add_argument("--window", type=int, metavar="W", help="of tparl and dparl (default: 5)")


def defences_of(options, names) -> list:
    """Those that are named, each with its options of `mucd run`. Raises MucdError for one that is none of `names`."""
    from mucd_ray.service.runs.cells import Defence

    for name in options.defences:
        if name not in names:
            raise MucdError(f"defence {name[:60]!r} is unknown: use some of {', '.join(names)}")
    chosen = dict.fromkeys(options.defences)
    if options.window is not None and not {"tparl", "dparl"} & set(chosen):
        raise MucdError(f"--window {options.window} is for the defences tparl and dparl: name one of them, or leave it out")
    return [Defence(name=name, options=_options_of_run(DEFENCES[name], options), trained=DEFENCES[name].trained or name) for name in chosen]


def _options_of_run(defence: Named, options):
    """Those of `mucd run`, with the rule and window of `mucd certify`."""
    parser = Parser(prog="mucd")
    add_run(parser.add_subparsers())
    given = {name: getattr(options, name, None) for name in (*SHARED, *defence.own)} | {("rollouts" if "neighbours" in defence.own else "instances"): options.instances}
    if "spread" in defence.own and given["spread"] is None:
        given["spread"] = SPREAD
    parsed = parser.parse_args(["run", options.dataset, "--storage", options.storage, *defence.fixed.split()])
    for name, value in given.items():
        if value is not None:
            setattr(parsed, name, value)
    for name in RESOURCES:
        setattr(parsed, name, getattr(options, name))
    parsed.no_environment = getattr(options, "no_environment", False)
    parsed.policy, parsed.nodes = getattr(options, "policy", parsed.policy), getattr(options, "nodes", None)
    parsed.episodes = options.episodes if defence.rule or parsed.policy == "vote" else None
    parsed.rule, parsed.window = defence.rule, options.window if defence.rule in ("tparl", "dparl") else None
    return parsed
