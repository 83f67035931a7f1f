"""`mucd import` and `mucd inspect`: data of one's own."""

import json
import os

from mucd_ray.cli.options import add_command, json_object, path
from mucd_ray.errors import MucdError


def add_import(commands):
    sub = add_command(
        commands, "import", import_file, "Make a dataset of a file or folder of another format, after a report on what is in it.",
        "mucd import log.csv --dataset mine/log-v0 --columns 'obs=f1:f2:f3,action=act,reward=r,episode=ep' --environment CartPole-v1",
    )
    sub.add_argument("source", type=path, help="file or folder: LeRobot v2 or v3, Minari, RLDS, DQN Replay, RLlib, robomimic, d3rlpy, D4RL, OGBench, npz, parquet or CSV (docs/datasets.md)")
    sub.add_argument("--dataset", required=True, metavar="ID", help="Minari id to write, such as mine/log-v0")
    _add_reading(sub)
    sub.add_argument("--drop-invalid", action="store_true", help="leave out every trajectory with a fault of its own (NaN, inf, an action outside its space, time that goes back, an end inside it), whole; without it they are refused")
    sub.add_argument("--overwrite", action="store_true", help="replace an existing dataset of this id")


def _add_reading(sub):
    sub.add_argument("--format", metavar="F", help="name of the format, or of an installed plug-in (`mucd --version` lists them; default: recognised by its layout and first bytes)")
    sub.add_argument("--columns", metavar="MAP", help="of CSV, parquet and npz: ROLE=NAME:NAME:... with commas between, names or patterns such as obs=f*; roles are obs, action, reward, episode, terminated, truncated, next_obs, time and source (default: usual names)")
    sub.add_argument("--observation-keys", metavar="A,B", help="of LeRobot, RLDS and robomimic: which observations, side by side in this order (default: all vectors, sorted)")
    sub.add_argument("--max-episode-steps", type=int, metavar="N", help="an episode ends after N steps where nothing marks it, as in D4RL's files without timeouts; one row more or less then moves all that follow")
    sub.add_argument("--environment", metavar="ID", help="Gymnasium id of the environment in which it was recorded; its spaces are then those of the dataset. A file's own word makes no environment")
    sub.add_argument("--card", type=path, metavar="FILE", help="the same by a card of yours, or the name of a plug-in")
    sub.add_argument("--import", dest="imports", action="append", metavar="MODULE", help="import package.module or path/to/file.py first, which registers the environment, or whose formats are plug-ins that shall recognise files; may be repeated")
    sub.add_argument("--make-kwargs", type=json_object, metavar="JSON", help="with --environment: its arguments, such as '{\"continuous\": true}' (default: those of its card)")
    sub.add_argument("--actions", metavar="N|NxM|LO,HI|A,B,C", help="the action space where there is no environment: how many actions, of several components how many values each (3x11x11), the range of continuous ones, or the names of actions that are texts in a table, in the order in which they are counted")


def _reading(options, **others):
    from mucd_ray.data.importing import ImportOptions

    keys = None if options.observation_keys is None else tuple(options.observation_keys.split(","))
    named = {name: getattr(options, name) for name in ("format", "columns", "max_episode_steps", "environment", "card", "make_kwargs", "actions")}
    return ImportOptions(observation_keys=keys, imports=tuple(options.imports or ()), **named, **others)


def import_file(options, out):
    from mucd_ray.data.importing import import_dataset
    from mucd_ray.data.inspection import told

    report = import_dataset(options.source, options.dataset, _reading(options, drop_invalid=options.drop_invalid), overwrite=options.overwrite)
    out(json.dumps(report) if options.json else f"{told(report, report['dataset_id'])}\nin {report['path']}")


def add_inspect(commands):
    sub = add_command(commands, "inspect", inspect_dataset, "Report what is in a dataset or file: counts, spaces, sources, and whatever looks wrong.", "mucd inspect log.csv --plot log.png")
    sub.add_argument("dataset", help="Minari id, or a file or folder that `mucd import` reads")
    _add_reading(sub)
    sub.add_argument("--plot", type=path, metavar="FILE", help="PNG to write: lengths and returns of its trajectories")


def inspect_dataset(options, out):
    from mucd_ray.data.formats.labelled import is_labelled
    from mucd_ray.data.formats.minari import check_is_local
    from mucd_ray.data.importing import load_dataset_folder, load_source
    from mucd_ray.data.inspection import inspect, told

    name, reading = os.path.expanduser(options.dataset), _reading(options)
    is_file = os.path.exists(name)
    if not is_file and options.format not in (None, "minari"):
        raise MucdError(f"--format {options.format} is of a file or folder, and {options.dataset} is none: name the file, or leave --format out for a Minari dataset of this id")
    if not is_file and options.columns is not None:
        raise MucdError(f"--columns {options.columns} is of a file, and {options.dataset} is none: name the file, or leave --columns out for a Minari dataset of this id")
    if not is_file and is_labelled(check_is_local(options.dataset)):
        return _inspect_labelled(options, out)
    loaded = load_source(name, reading) if is_file else load_dataset_folder(options.dataset, reading)
    report = inspect(loaded)
    if options.plot:
        _write_plot(options.plot, loaded)
    out(json.dumps(report) if options.json else told(report, options.dataset))


def _inspect_labelled(options, out):
    from mucd_ray.data.formats.labelled import report_on
    from mucd_ray.data.formats.minari import load_dataset

    if options.plot:
        raise MucdError(f"{options.dataset} holds labelled images, of which there is no plot of trajectories: leave --plot out")
    report = report_on(load_dataset(options.dataset))
    out(json.dumps(report) if options.json else "\n".join(f"{name.replace('_', ' '):24s} {value}" for name, value in report.items()))


def _write_plot(file: str, loaded) -> None:
    import numpy as np

    from mucd_ray.files import write_file
    from mucd_ray.report.plots import trajectories

    if not loaded.episodes:
        raise MucdError("it has no valid trajectory: there is nothing to draw")
    write_file(file, trajectories(lengths=[len(episode) for episode in loaded.episodes], returns=np.concatenate([loaded.alone(episode).trajectory_returns for episode in loaded.episodes])))
