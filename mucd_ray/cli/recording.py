"""`mucd record` and `mucd card`: datasets of one's own, and what is public about their environments."""

import json
import sys

from mucd_ray.cli.options import add_command, add_environment, path
from mucd_ray.errors import MucdError
from mucd_ray.progress import counting
from mucd_ray.words import counted

# What says how episodes are recorded.
OF_EPISODES = ("environment", "behaviour", "transitions", "noise", "seed", "operators", "frames", "policy", "imports", "make_kwargs", "max_episode_steps")


def add_record(commands):
    sub = add_command(commands, "record", record, "Record a real Minari dataset with a named behaviour policy.", "mucd record Acrobot-v1 --dataset acrobot/mixed-v0")
    sub.add_argument("environment", nargs="?", help="Gymnasium id; with --policy of any environment")
    sub.add_argument("--list", action="store_true", help="list the recipes (with size, mean return and time to make) and the behaviours")
    sub.add_argument("--recipe", metavar="ID", help="make this listed dataset, exactly")
    sub.add_argument("--idx", type=path, metavar="DIR", help="make a dataset of labelled images: the four IDX files of MNIST or a relative, or CIFAR-10's binary files. Images for training are the units, those for testing the states, whose labels count as right")
    sub.add_argument("--dataset", help="Minari id to write, such as acrobot/mixed-v0")
    sub.add_argument("--behaviour", help="behaviour policy (default: the environment's first)")
    sub.add_argument("--policy", metavar="POLICY", help="record a policy of yours instead: path/to/file.py:function or package.module:function from an observation to an action (or an object with act, and perhaps reset), model.zip of Stable-Baselines3 (executed, like any pickle), or random")
    sub.add_argument("--transitions", type=int, help="at least this many, in whole episodes (default: 20000)")
    sub.add_argument("--noise", type=float, nargs="+", help="noise levels, one drawn per episode: probability of a random action or, for continuous actions, standard deviation in half ranges (default: the behaviour's)")
    sub.add_argument("--seed", type=int, help="seed of behaviour and environment (default: 0)")
    sub.add_argument("--operators", type=int, metavar="K", help="K operators take turns, each with one of the noise levels; episodes have the key `operator`, for `mucd run --source-key operator`")
    sub.add_argument("--frames", action="store_true", help="of an Atari game, store small grey frames instead of RAM")
    sub.add_argument("--overwrite", action="store_true", help="replace an existing dataset of this id")
    add_environment(sub, returns=False)


def record(options, out):
    if options.list:
        return _list_recordings(options, out)
    if options.idx:
        return _record_labelled(options, out)
    with counting("recording", "transition") as progress:
        if options.recipe:
            from mucd_ray.data.recording.recipes import make

            if _given(options, "dataset", *OF_EPISODES):
                raise MucdError(f"--recipe {options.recipe} names a whole dataset: leave out the environment and all that would make another one")
            summary = make(options.recipe, overwrite=options.overwrite, progress=progress)
        else:
            from mucd_ray.data.environments.own import UserEnvironment
            from mucd_ray.data.recording.given import given_policy
            from mucd_ray.data.recording.record import record as record_dataset
            from mucd_ray.modules import import_modules

            if not options.environment or not options.dataset:
                raise MucdError("record needs an environment and --dataset ID, for example: mucd record Acrobot-v1 --dataset acrobot/mixed-v0, or --recipe ID")
            said = UserEnvironment.of(options)
            import_modules(said.imports)
            summary = record_dataset(
                options.environment, options.behaviour, 20_000 if options.transitions is None else options.transitions, options.seed or 0, options.dataset,
                tuple(options.noise) if options.noise else None, frames=options.frames, operators=options.operators, overwrite=options.overwrite, progress=progress,
                policy=given_policy(options.policy, options.environment) if options.policy is not None else None, said=said,
            )
    text = (
        f"{summary['dataset_id']}: {counted(summary['transitions'], 'transition')} in {counted(summary['trajectories'], 'trajectory')} of {summary['env_id']}, "
        f"mean return {summary['mean_return']:.2f}\nin {summary['path']}"
    )
    if options.recipe:
        declared = summary["declared_checksum"]
        told = "none is declared" if declared is None else "as declared" if declared == summary["checksum"] else f"declared is {declared}"
        text += f"\nchecksum {summary['checksum']} ({told})"
        if declared not in (None, summary["checksum"]):
            print(
                f"mucd: {options.recipe} is not byte for byte the declared one: Box2D, MuJoCo and other floating-point results differ across processors and "
                "versions; the dataset is sound, but figures published for this recipe may differ slightly",
                file=sys.stderr,
            )
    out(json.dumps(summary) if options.json else text)


def _given(options, *names: str) -> list[str]:
    """Which of these the user gave."""
    return [name for name in names if getattr(options, name) not in (None, False, [])]


def _record_labelled(options, out):
    from mucd_ray.data.formats.labelled import record_labelled

    if options.dataset is None or _given(options, "recipe", *OF_EPISODES):
        raise MucdError("--idx DIR takes --dataset ID beside it, and nothing about environments or behaviours, for example: mucd record --idx /usr/share/datasets/fashion-mnist --dataset fashion/mnist-v0")
    summary = record_labelled(options.idx, options.dataset, overwrite=options.overwrite)
    out(json.dumps(summary) if options.json else (
        f"{summary['dataset_id']}: {counted(summary['images'], 'image')} for training, the units, and {summary['test_images']} for testing, the states, "
        f"of {summary['classes']} classes and shape {' x '.join(map(str, summary['shape']))}\nin {summary['path']}"
    ))


def _list_recordings(options, out):
    from mucd_ray.data.recording.behaviours import behaviour_catalogue
    from mucd_ray.data.recording.recipes import recipe_catalogue

    recipes, behaviours = recipe_catalogue(), behaviour_catalogue()
    if options.json:
        out(json.dumps({"recipes": recipes, "behaviours": behaviours}))
        return
    rows = [("recipe", "environment", "behaviour", "transitions", "mean return", "seconds", "MB")]
    for recipe in recipes:
        known = ("?" if recipe[name] is None else f"{recipe[name]:{form}}" for name, form in (("mean_return", ".1f"), ("seconds", ".0f"), ("megabytes", ".0f")))
        rows.append((recipe["dataset"], _environment(recipe), recipe["behaviour"], f"{recipe['size'] or recipe['transitions']:,}", *known))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) if n < 3 else cell.rjust(width) for n, (cell, width) in enumerate(zip(row, widths))) for row in rows]
    lines += ["", "? not made here yet", "", "record one with `mucd record --recipe ID` and train on it with `mucd run ID --storage runs/NAME`, for example:"]
    lines += ["mucd record --recipe lunarlander/continuous-v0", "mucd run lunarlander/continuous-v0 --storage runs/lander", "", "behaviours (noise levels, of which each episode draws one):"]
    lines += [f"{row['name']}, {_environment(row)}: {row['description']} ({', '.join(f'{level:g}' for level in row['noise'])})" for row in behaviours]
    out("\n".join(lines))


def _environment(row: dict) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in row["make_kwargs"].items())
    return row["env_id"] + (f" ({arguments})" if arguments else "")


def add_card(commands):
    sub = add_command(commands, "card", card, "Write an environment's card of what the environment itself declares, and mark what is to be filled in.", "mucd card Acrobot-v1 --out acrobot.json")
    sub.add_argument("subject", metavar="ENV|DATASET", help="Gymnasium id, or a dataset, of which nothing is read but the id of its environment")
    sub.add_argument("--out", type=path, metavar="FILE", help="write it there (default: standard output)")
    add_environment(sub)


def card(options, out):
    from mucd_ray.data.environments.cards import known_card
    from mucd_ray.data.environments.own import ASKED_FOR, UserEnvironment, card_file, declared
    from mucd_ray.data.environments.recorded_in import name_of
    from mucd_ray.data.formats.minari import recorded_environment
    from mucd_ray.files import write_file
    from mucd_ray.modules import import_modules

    said = UserEnvironment.of(options)
    import_modules(said.imports)
    recorded = recorded_environment(options.subject)
    # What a dataset names is looked up in what is registered, and nothing that it names is imported.
    text, missing = card_file(declared(options.subject if recorded is None else name_of(recorded), said))
    if options.out:
        write_file(options.out, (text + "\n").encode(), new=True)
    out(text if not options.out else json.dumps({"card": options.out, "missing": missing}) if options.json else options.out)
    for name in missing:
        print(f"mucd: {name} is not declared and to be filled in, never from the data to be certified: {ASKED_FOR[name]}", file=sys.stderr)
    known, plugin = known_card(recorded or options.subject)
    if known is not None:
        print(f"mucd: {f'the plug-in {plugin} has a card' if plugin else 'a card is shipped'} for this environment, and used where no other is given", file=sys.stderr)
