"""How a command is declared, and the options that several commands share."""

import argparse
import json
import os
import re

from mucd_ray.words import harmless

# Options in the first line of a command's help.
MOST_IN_USAGE = 12
# A negative number that begins a list, which argparse takes for an option.
NEGATIVE_LIST = re.compile(r"-[\d.][\d.eE+-]*,[\d.eE+-]*")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, unless there is none or the text tells it itself; of many options those that are needed stand in the first line, and all of them below."""

    def _get_help_string(self, action):
        told = action.default is None or action.default is False or "(default" in (action.help or "")
        return action.help if told else super()._get_help_string(action)

    def _get_default_metavar_for_optional(self, action):
        return METAVARS.get(action.type) or super()._get_default_metavar_for_optional(action)

    def add_usage(self, usage, actions, groups, prefix=None):
        actions = list(actions)
        needed = [action for action in actions if action.required or not action.option_strings]
        if len(actions) > MOST_IN_USAGE:
            options = "".join(f" {action.option_strings[0]} {action.metavar or self._get_default_metavar_for_optional(action)}" for action in needed if action.option_strings)
            names = [f"[{action.dest}]" if action.nargs == "?" else action.metavar or action.dest for action in needed if not action.option_strings]
            usage = " ".join([f"%(prog)s{options} [OPTION ...]", *names])
        super().add_usage(usage, actions, groups, prefix)


class Parser(argparse.ArgumentParser):
    """Bad arguments are one line, like all other bad input."""

    def parse_known_args(self, args=None, namespace=None):
        if args is not None:
            args = list(args)
            for place in range(len(args) - 1, 0, -1):
                if NEGATIVE_LIST.fullmatch(args[place]) and re.fullmatch("--[a-z-]+", args[place - 1]):
                    args[place - 1 : place + 1] = [f"{args[place - 1]}={args[place]}"]
        return super().parse_known_args(args, namespace)

    def error(self, message):
        self.exit(2, harmless(f"mucd: error: {' '.join(message.split())}; see `{self.prog} --help`") + "\n")


def add_command(commands, name, function, help, example):
    """One of `commands`, which calls function(options, out); returns its parser, for its own options."""
    sub = commands.add_parser(name, help=help.split(". ")[0].rstrip("."), description=help, epilog=f"example: {example}", formatter_class=HelpFormatter)
    sub.set_defaults(command=function)
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    return sub


def path(text: str) -> str:
    """Shells do not expand the ~ of --option=~/file, and make nothing of a variable that is not set: that is not an option left out."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: name a file or folder, or leave it out")
    return os.path.expanduser(text)


def key(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty: name the key, or leave it out")
    return text


def sentence(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: say it in a sentence, or leave it out")
    return text


def keys(text: str) -> tuple[str, ...]:
    """"KEY,KEY"."""
    return tuple(key(name.strip()) for name in text.split(","))


def bounds(text: str) -> tuple[float, float]:
    """"LO,HI"."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r:.100} must be two numbers with a comma between, such as -500,330") from None
    return low, high


def json_object(text: str) -> dict:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise argparse.ArgumentTypeError(f"{text!r:.100} must be a JSON object, such as '{{\"continuous\": true}}'")
    return values


# How the values of options are named in help.
METAVARS = {int: "N", float: "X", path: "PATH", key: "NAME", sentence: "TEXT"}


def add_environment(sub, returns=True, again=False, when=""):
    """How an environment is made without a card; with `returns` also the range of returns. `again`: what a run began with is to be said again. See `UserEnvironment`."""
    group = sub.add_argument_group("environment", f"{when}each as the run began with it: a run folder alone imports and makes nothing" if again else None)
    group.add_argument("--import", dest="imports", action="append", metavar="MODULE", help="import package.module or path/to/file.py, which registers the environment, in every process that makes it; may be repeated")
    group.add_argument("--make-kwargs", type=json_object, metavar="JSON", help="arguments of the environment, such as '{\"continuous\": true}' (default: those of its card)")
    group.add_argument("--max-episode-steps", type=int, metavar="N", help="cut episodes after N steps; needed where the environment has no time limit (default: as registered, or that of its card)")
    if returns:
        group.add_argument("--return-range", type=bounds, metavar="LO,HI", help="clip the return of every episode into this range, which must not follow from the data; with it bags, parts and trainers of yours need no card (default: the card's)")


def add_accountant(sub, default=lambda value: value):
    sub.add_argument("--accountant", default=default("tradeoff"), choices=["tradeoff", "rdp", "rdp-mirrored", "adp", "adp-group", "published"], help="outcomes guarantee; published is not sound")


def add_threat(sub, default=lambda value: value):
    sub.add_argument("--threat", default=default("symmetric"), choices=["symmetric", "insert", "remove", "substitute"], help="how D' may differ from D")
    add_accountant(sub, default)


def add_until(sub):
    sub.add_argument(
        "--until",
        metavar="GOAL",
        help="stop as soon as a certificate says so, such as return>=0.5@0.01: half of the mean return kept with 1 %% of the units poisoned (also actions>=0.9@1%%, "
        "absolute-return>=-200@0.01); looked at at 100, 160, 250, 400, 630, 1000, 1600, ... instances; --instances is the budget; exit status 1 if it ends first",
    )


def add_choices(sub, of_run=False):
    """With `of_run` options that are left out are None: what the run's certificate has."""
    group = sub.add_argument_group("certificate", "each by default as in the run's certificate.json" if of_run else None)

    def default(value):
        return None if of_run else value

    group.add_argument("--eta", type=float, default=default(0.001), help="probability that a statement may be wrong")
    group.add_argument("--band", default=default("order-statistic"), choices=["order-statistic", "dkw"], help="confidence band on the distribution of returns")
    group.add_argument("--inference", default=default("votes"), choices=["votes", "scores"], help="certify discrete actions by the instances' votes or by their mean probability scores")
    group.add_argument("--policy", default=default("instance"), choices=["instance", "vote"], help="whose return is certified: that of an instance drawn at random (of neighbours: of episodes that are certified as they went), or also that of the voted policy, through all that poisoning could make of it")
    group.add_argument("--episodes", type=int, help="with --policy vote or certify --rule: episodes of that policy, each with a seed of its own; one is enough where nothing is random in the environment (default: 100)")
    group.add_argument("--nodes", type=int, help="with --policy vote: how many nodes of an episode are followed at most, beside its own path, where poisoned votes could change an action (default: 500)")
    add_threat(group, default)


def add_resources(sub, per_trial=False, of_run=False):
    group = sub.add_argument_group("resources")
    group.add_argument("--instances-per-actor", type=int, help="instances that an actor trains at a time; changes speed only (default: 32 on a CPU, 1024 on a GPU)")
    if per_trial:
        group.add_argument("--trainers-per-trial", dest="actors", metavar="N", type=int, default=1, help="trainers of each trial, one CPU or GPU share each")
    else:
        group.add_argument("--actors", type=int, help="number of trainers; those without room wait for it, so that an autoscaler sees them (default: one per CPU or GPU share, following the cluster)")
    group.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="auto takes GPUs if Ray has some")
    group.add_argument("--gpus-per-actor", type=float, default=1.0, help="share of a GPU per trainer")
    group.add_argument("--gpu-type", help="kind of GPU as Ray names it, such as H100 (default: any)")
    group.add_argument("--wait-for-nodes", action="store_true", help=("" if per_trial else "with --actors: ") + "do not refuse what the cluster lacks now, an autoscaler will bring it")
    group.add_argument("--lease", type=float, default=600.0, help="seconds without progress after which a trainer counts as stuck, then twice as many, up to eight times, for the same block; longer than training one instance takes")
    if of_run:
        group.add_argument("--runtime-env", type=path, metavar="FILE", help="YAML or JSON: Ray's runtime environment of the processes that train, such as packages for a trainer of yours (default: that of the job)")
    group.add_argument("--address", help="Ray cluster to join (default: RAY_ADDRESS, or a local Ray)")
