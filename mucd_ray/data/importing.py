"""`mucd import`: episodes of a stranger's file become a Minari dataset, or are refused with their place in the file."""

import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.storage import get_dataset_path

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.cards import card_named, known_card
from mucd_ray.data.environments.make import make_environment, spec_of
from mucd_ray.data.environments.own import UserEnvironment
from mucd_ray.data.environments.plain import declared_spaces, plain
from mucd_ray.data.environments.recorded_in import same_environment
from mucd_ray.data.formats.column_map import parse
from mucd_ray.data.formats.episodes import Episode, Recording, with_fault
from mucd_ray.data.formats.keys import OWN, SEVERAL, kept_key
from mucd_ray.data.formats.metadata import IMPORTED, MOST_TEXT, READER, UNDECLARED
from mucd_ray.data.formats.minari import check_is_local
from mucd_ray.data.formats.registry import ReadOptions, read_source
from mucd_ray.data.formats.source import Source
from mucd_ray.data.formats.writing import target_folder, write_dataset
from mucd_ray.data.inspection import inspect
from mucd_ray.data.spaces import Actions, shape_of
from mucd_ray.errors import MucdError
from mucd_ray.files import printable
from mucd_ray.modules import import_modules
from mucd_ray.plugins import Plugin
from mucd_ray.words import harmless

NUMBER = re.compile(r"[-+]?(\d.*|\.\d.*|inf.*|nan)?", re.IGNORECASE)
OF_COMPONENTS = re.compile(r"[1-9]\d{0,4}(x[1-9]\d{0,4})+")
# Of whole numbers that may be numbers of actions.
MOST_ACTIONS = 1 << 16
MOST_TOLD = 3
# Of what a file may make its dataset's metadata hold.
MOST_NOTES, MOST_NOTE, MOST_KEYS = 100, 1000, 64


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What the user says; all of it is written into the dataset's metadata.

    Attributes:
        format: name of a format, or None to recognise it.
        columns: text of --columns.
        observation_keys, max_episode_steps: as in ReadOptions.
        environment: Gymnasium id of the environment in which the file was recorded.
        card: path of a card instead.
        imports, make_kwargs: modules that register the environment, and its arguments, as of `UserEnvironment`.
        actions: declared action space, "5", "3x11x11" or "-1,1", where there is no environment; or the names of discrete ones, "off,low,high".
        drop_invalid: leave out trajectories with a fault.
    """

    format: str | None = None
    columns: str | None = None
    observation_keys: tuple[str, ...] | None = None
    max_episode_steps: int | None = None
    environment: str | None = None
    card: str | None = None
    imports: tuple[str, ...] = ()
    make_kwargs: dict | None = field(default=None)
    actions: str | None = None
    drop_invalid: bool = False

    def __post_init__(self):
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            raise MucdError(f"--max-episode-steps {self.max_episode_steps} must be at least 1")
        if sum(value is not None for value in (self.environment, self.card, self.actions)) > 1:
            raise MucdError("--environment, --card and --actions each declare the actions: give one of them")
        if self.environment is None and self.make_kwargs is not None:
            raise MucdError("--make-kwargs are about the environment that --environment ID names: give that, too, or leave them out")
        UserEnvironment(imports=self.imports)  # checks the names of modules
        if self.actions is not None:
            _declared(self.actions, ())  # refuses what it cannot read
        if self.observation_keys is not None and (not all(self.observation_keys) or len(set(self.observation_keys)) < len(self.observation_keys)):
            raise MucdError("--observation-keys must be different names with commas between")

    @property
    def reading(self) -> ReadOptions:
        return ReadOptions(
            columns=None if self.columns is None else parse(self.columns), observation_keys=self.observation_keys, max_episode_steps=self.max_episode_steps, actions=_names(self.actions)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A source as it was read, and what is declared about it.

    Attributes:
        episodes: those that are sound, each with its place and keys.
        invalid: episodes with a fault.
        declared: whether the action space was declared, or follows from the rows.
        environment: the environment that the user named, or that a Minari dataset names, as its env_spec.
        format, sha256, files: what was read.
        plugin: that read it; None for the package's own formats.
    """

    episodes: list[Episode]
    invalid: list[Episode]
    notes: tuple[str, ...]
    declared: bool
    spec: dict | None
    format: str
    sha256: str
    files: int
    observation_space: gym.Space
    action_space: gym.Space
    plugin: Plugin | None = None

    def alone(self, episode: Episode) -> OfflineDataset:
        """One episode as a dataset; its arrays are not copied. Raises MucdError as `OfflineDataset.from_arrays`."""
        last = np.arange(len(episode)) == len(episode) - 1
        return OfflineDataset.from_arrays(
            name="import", env_id=self.spec and self.spec["id"], observations=episode.observations[:-1], next_observations=episode.observations[1:], actions=episode.actions, rewards=episode.rewards,
            terminations=last & episode.terminated, truncations=last & episode.truncated, trajectory_starts=[0, len(episode)], action_space=self.action_space, observation_space=self.observation_space,
            actions_declared=self.declared,
        )


def import_dataset(source, dataset_id: str, options: ImportOptions = ImportOptions(), *, overwrite: bool = False, root: Path | None = None) -> dict:
    """Read a file or folder of any known format and write it as a Minari dataset, whole or not at all. Nothing that it names is made, imported or called.

    Args:
        source: path.
        dataset_id: Minari id "(namespace/)name-v0".
        root: the folder of the datasets, by default Minari's.
    Returns:
        The report (`mucd_ray.data.inspection.inspect`), with `dataset_id` and `path`.
    Raises:
        MucdError: bad options, a file that is not read (the line names the place), or invalid trajectories without `drop_invalid`.
    """
    path = target_folder(dataset_id, overwrite, root or get_dataset_path())
    loaded = load_source(source, options)
    if loaded.invalid and not options.drop_invalid:
        told = harmless("; ".join(f"{episode.place}: {episode.faults[0]}" for episode in loaded.invalid[:MOST_TOLD]))
        raise MucdError(
            f"{source}: {len(loaded.invalid)} of {len(loaded.invalid) + len(loaded.episodes)} trajectories are invalid ({told}{'; ...' if len(loaded.invalid) > MOST_TOLD else ''}): "
            "mend them, or leave out every invalid trajectory, whole, with --drop-invalid (`mucd inspect` lists them)"
        )
    if not loaded.episodes:
        raise MucdError(f"{source} has no trajectory that is valid ({loaded.invalid[0].place}: {loaded.invalid[0].faults[0]}): nothing is left to import")
    report = inspect(loaded)
    write_dataset(
        dataset_id, path, [_buffer(episode) for episode in loaded.episodes], observation_space=loaded.observation_space, action_space=loaded.action_space,
        metadata=_metadata(loaded, options), episode_metadata=[episode.keys for episode in loaded.episodes], overwrite=overwrite,
    )
    return {"dataset_id": dataset_id, "path": str(path)} | report


def load_source(source, options: ImportOptions = ImportOptions()) -> Loaded:
    """The episodes of a file in one shape and type, sound ones apart from the others. Raises MucdError as `import_dataset`."""
    # Formats of plug-ins may be in them, too.
    import_modules(options.imports)
    with Source(source) as opened:
        name, recording, plugin = read_source(opened, options.format, options.reading)
        sha256, files = opened.digest(), opened.files
    if not recording.episodes:
        raise MucdError(f"{source} has no episodes")
    try:
        return replace(_settled(recording, options, name, sha256, files), plugin=plugin)
    except MucdError as error:
        raise MucdError(f"{source}: {harmless(str(error))}") from None
    except Exception as error:
        if plugin is None:
            raise
        raise MucdError(f"{source}: what the plug-in {plugin} makes of it cannot be taken ({printable(error) or type(error).__name__}): mend that") from None


def load_dataset_folder(dataset_id: str, options: ImportOptions = ImportOptions()) -> Loaded:
    """The same of a local Minari dataset, by its id. Raises MucdError as `load_source`, and where there is none of this id."""
    check_is_local(dataset_id)
    return load_source(get_dataset_path(dataset_id), replace(options, format="minari"))


def _settled(recording: Recording, options: ImportOptions, name: str, sha256: str, files: int) -> Loaded:
    filled = [episode for episode in recording.episodes if len(episode)]
    if not filled:
        raise MucdError(f"none of its {len(recording.episodes)} episodes has a transition")
    observations, actions = _of_one_kind(filled, "observations"), _of_one_kind(filled, "actions")
    notes, environment = list(recording.notes[:MOST_NOTES]), _environment(options, observations[1])
    try:
        # A reader that knows the space has counted them already.
        counted = Actions(declared=declared_spaces(environment)[1]) if environment and not isinstance(recording.action_space, gym.spaces.MultiDiscrete) else None
        declared = environment.action_space if environment else _declared(options.actions, actions[1]) or recording.action_space
        observation_space, cast = _observation_space(environment, recording, *observations)
        action_space = declared if declared is not None else _undeclared(filled, *actions)
        spec = _spec(recording, environment, notes)
    finally:
        if environment is not None:
            environment.close()
    if isinstance(action_space, gym.spaces.Box) and len(action_space.shape) != 1 or not isinstance(action_space, (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete)):
        raise MucdError(f"actions in {action_space} are not supported: one whole number or one list of numbers is")
    if declared is None:
        notes.append(f"the action space {action_space} follows from the rows: declare it with --environment ID, --card FILE or --actions (a run compares it with its environment's, and takes that)")
    sound: list[Episode] = []
    invalid: list[Episode] = []
    for episode in _with_keys(tuple(recording.episodes)):
        checked = _checked(_counted(episode, counted), observation_space, cast, action_space) if len(episode) else with_fault(episode, "it has no transition")
        (invalid if checked.faults else sound).append(checked)
    if options.drop_invalid and invalid:
        notes.append(f"--drop-invalid left out {len(invalid)} of {len(recording.episodes)} trajectories, each for a fault of its own")
    return Loaded(
        episodes=sound, invalid=invalid, notes=tuple(harmless(note)[:MOST_NOTE] for note in notes), declared=declared is not None,
        spec=spec, format=name, sha256=sha256, files=files, observation_space=observation_space, action_space=action_space,
    )


def _counted(episode: Episode, actions: Actions | None) -> Episode:
    """The episode with the numbers of combinations, or numbers counted from 0, for actions of several whole numbers; with a fault where these are not in their space."""
    if actions is None or not actions.are_several or episode.actions.shape[1:] != actions.declared.shape:
        return episode
    try:
        return replace(episode, actions=actions.rows(episode.actions))
    except MucdError as error:
        return with_fault(replace(episode, actions=np.zeros((len(episode), *shape_of(actions.space)), np.int64)), str(error))


def _with_keys(episodes: tuple[Episode, ...]) -> list[Episode]:
    """With keys as attributes beside Minari's own: those of short printable names, by which alone anybody could ask for them, and which are a key in any episode at all.

    Raises:
        MucdError: there are too many, or two would have one name.
    """
    named = [{name: value if value == SEVERAL or not isinstance(value, str) else kept_key([value]) for name, value in sorted(episode.keys.items()) if 0 < len(name) <= MOST_TEXT and name.isprintable()} for episode in episodes]
    names = {name for keys in named for name, value in keys.items() if value is not None and value != SEVERAL}
    if len(names) > MOST_KEYS:
        raise MucdError(f"its episodes have {len(names)} keys in all, at most {MOST_KEYS} are taken: which of them would be left out could depend on what somebody has added")
    for name in names.intersection(OWN):
        if f"source_{name}" in names:
            raise MucdError(f"its episodes have the keys {name}, which becomes source_{name}, and source_{name}: rename one of them")
    return [
        replace(episode, keys={f"source_{name}" if name in OWN else name: value for name, value in keys.items() if value is not None and name in names}) for episode, keys in zip(episodes, named)
    ]


def _of_one_kind(episodes: list[Episode], what: str) -> tuple[np.dtype, tuple[int, ...]]:
    """(dtype, shape of a row) that all have. Raises MucdError for two: which is right is not guessed."""
    def kind(episode):
        array = getattr(episode, what)
        if array.dtype.kind not in "biuf":
            raise MucdError(f"{what} of {episode.place} have dtype {array.dtype}: only numbers are read")
        return array.dtype, array.shape[1:]

    first = kind(episodes[0])
    for episode in episodes[1:]:
        if kind(episode) != first:
            told = [f"{dtype}{list(shape)} in {place}" for (dtype, shape), place in ((first, episodes[0].place), (kind(episode), episode.place))]
            raise MucdError(f"{what} have two shapes or types, {told[0]} and {told[1]}: import them apart")
    return first


def _environment(options: ImportOptions, shape: tuple[int, ...]) -> gym.Env | None:
    """That of what the user named: his card, a shipped one that fits, or the id alone; a file's own words make no environment."""
    if options.card is not None:
        return card_named(options.card)[0].make()
    if options.environment is None:
        return None
    card, _ = known_card(options.environment, shape or (1,), make_kwargs=options.make_kwargs)
    if card is not None and options.make_kwargs in (None, card.make_kwargs):
        return card.make()
    return plain(make_environment(options.environment, **(options.make_kwargs or {})), (), shape)


def _declared(text: str | None, shape: tuple[int, ...]) -> gym.Space | None:
    """The space of --actions: "5" is Discrete(5), as are five names; "3x11x11" is MultiDiscrete([3, 11, 11]); "-1,1" a Box with these bounds."""
    if text is None:
        return None
    if (names := _names(text)) is not None:
        return gym.spaces.Discrete(len(names))
    if OF_COMPONENTS.fullmatch(text):
        space = gym.spaces.MultiDiscrete([int(number) for number in text.split("x")])
        Actions(declared=space)  # refuses too many
        return space
    try:
        numbers = [float(part) for part in text.split(",")]
        if len(numbers) == 1 and numbers[0].is_integer() and 1 <= numbers[0] <= MOST_ACTIONS:
            return gym.spaces.Discrete(int(numbers[0]))
        with np.errstate(over="ignore"):
            bounds = np.array(numbers, np.float32)
        if len(numbers) == 2 and np.isfinite(bounds).all() and bounds[0] < bounds[1]:
            return gym.spaces.Box(bounds[0], bounds[1], shape or (1,), np.float32)
    except ValueError:
        pass
    raise MucdError(f"--actions {printable(text)!r}: give the number of actions, such as 5, or of each component of one, such as 3x11x11, the range of continuous ones, such as -1,1, or the names of those that are texts, such as off,low,high")


def _names(text: str | None) -> tuple[str, ...] | None:
    """Several names of which none is a number, in their order."""
    names = tuple(name.strip() for name in (text or "").split(","))
    if len(names) < 2 or len(set(names)) < len(names) or len(names) > MOST_ACTIONS or any(NUMBER.fullmatch(name) or not name.isprintable() for name in names):
        return None
    return names


def _observation_space(environment, recording: Recording, dtype: np.dtype, shape: tuple[int, ...]) -> tuple[gym.Space, np.dtype]:
    """(space, dtype of what is written). Whatever is not declared has no bounds: none is taken from the rows."""
    shape = shape or (1,)
    dtype = np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")
    declared = environment.observation_space if environment else recording.observation_space
    if declared is None:
        low, high = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        return gym.spaces.Box(low, high, shape, dtype), dtype
    if (declared.shape or (1,)) != shape:
        whose = f"{spec_of(environment).id} has" if environment else "the file declares"
        raise MucdError(f"observations have shape {list(shape)}, {whose} {declared}: name the columns or keys that are observed there")
    # Text and HDF5 often keep as doubles what was observed in other types.
    return declared, dtype if declared.dtype is None or environment is None or dtype.kind != "f" else declared.dtype


def _undeclared(episodes: list[Episode], dtype: np.dtype, shape: tuple[int, ...]) -> gym.Space:
    """Discrete for one whole number, with as many actions as the largest says; otherwise a Box without bounds."""
    if dtype.kind in "iub" and shape in ((), (1,)):
        least, most = min(int(episode.actions.min()) for episode in episodes), max(int(episode.actions.max()) for episode in episodes)
        if least < 0 or most >= MOST_ACTIONS:
            raise MucdError(f"actions are whole numbers from {least} to {most}: declare them with --environment ID or --actions N")
        return gym.spaces.Discrete(most + 1)
    return gym.spaces.Box(-np.inf, np.inf, shape or (1,), np.float32)


def _spec(recording: Recording, environment: gym.Env | None, notes: list[str]) -> dict | None:
    """Which environment the dataset will say that it was recorded in: the user's word, else a Minari dataset's own, as words."""
    recorded = recording.recorded
    if environment is not None:
        spec = spec_of(environment)
        if recorded is not None and not same_environment(recorded.env_id, spec.id):
            notes.append(f"the file says that it was recorded in {recorded.env_id}, you say {spec.id}: yours is written")
        return {"id": spec.id, "entry_point": None, "kwargs": spec.kwargs, "max_episode_steps": None, "additional_wrappers": []}
    if recorded is None:
        return None
    wrappers = [{"name": name, "entry_point": "", "kwargs": None} for name in recorded.wrappers]
    return {"id": recorded.env_id, "entry_point": None, "kwargs": recorded.kwargs, "max_episode_steps": recorded.max_episode_steps, "additional_wrappers": wrappers}


def _checked(episode: Episode, observation_space: gym.Space, cast: np.dtype, action_space: gym.Space) -> Episode:
    """The episode in the types of the dataset, with a fault for everything in it that is not finite or outside of its space: a function of the episode and of what is declared."""
    faults = list(episode.faults)
    observations = episode.observations.reshape(len(episode.observations), *shape_of(observation_space))
    with np.errstate(over="ignore", invalid="ignore"):
        written, rewards = observations.astype(cast, copy=False), episode.rewards.astype(np.float64)
    for name, values in (("observations", written if cast.kind == "f" else observations), ("actions", episode.actions), ("rewards", rewards)):
        bad = ~np.all(np.isfinite(values).reshape(len(values), -1), axis=1)
        if bad.any():
            faults.append(f"{name} are NaN, inf or too large in {int(bad.sum())} of {len(bad)} rows, first at step {int(np.argmax(bad))}")
    if cast.kind != "f" and (written != observations).any():
        faults.append(f"observations are no whole numbers of {observation_space}")
    actions, bad = _actions(episode.actions, action_space)
    if bad.any() and not any(fault.startswith("actions are NaN") for fault in faults):
        row = int(np.argmax(bad))
        faults.append(f"{int(bad.sum())} of {len(bad)} actions are outside {action_space}, first at step {row} ({printable(episode.actions[row])[:60]})")
    return replace(episode, observations=written, actions=actions, rewards=rewards, faults=tuple(faults))


def _actions(actions: np.ndarray, space: gym.Space) -> tuple[np.ndarray, np.ndarray]:
    """(actions in the type of the space, which rows lie outside it)."""
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(space, gym.spaces.Discrete):
            column = actions.reshape(len(actions), -1)
            bad = ~((column == np.floor(column)) & (column >= int(space.start)) & (column < int(space.start) + int(space.n))).all(axis=1)
            if column.shape[1] != 1:
                return np.zeros(len(actions), np.int64), np.ones(len(actions), bool)
            return np.where(bad, int(space.start), np.nan_to_num(column[:, 0])).astype(np.int64), bad
        flat = actions.reshape(len(actions), -1)
        if flat.shape[1:] != space.shape:
            return np.zeros((len(actions), *shape_of(space)), space.dtype), np.ones(len(actions), bool)
        if isinstance(space, gym.spaces.MultiDiscrete):
            bad = ~((flat == np.floor(flat)) & (flat >= 0) & (flat < space.nvec)).all(axis=1)
            return np.where(bad[:, None], 0, np.nan_to_num(flat)).astype(np.int64), bad
        assert isinstance(space, gym.spaces.Box)
        written = flat.astype(space.dtype)
        low, high = np.nextafter(np.float32(space.low), -np.inf), np.nextafter(np.float32(space.high), np.inf)
        return written, ~(np.isfinite(np.float32(flat)) & (flat >= low) & (flat <= high)).all(axis=1)


def _buffer(episode: Episode) -> EpisodeBuffer:
    flags = np.zeros((2, len(episode)), bool)
    flags[:, -1] = episode.terminated, episode.truncated
    return EpisodeBuffer(observations=episode.observations, actions=episode.actions, rewards=episode.rewards, terminations=flags[0], truncations=flags[1])


def _metadata(loaded: Loaded, options: ImportOptions) -> dict:
    """Plain texts and numbers: whence it came and what was chosen."""
    chosen = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(options).items() if value not in (None, False, ())}
    spec = {} if loaded.spec is None else {"env_spec": json.dumps(loaded.spec, default=str)}
    return spec | {
        "description": f"imported by mucd from {loaded.format}", IMPORTED: {
            "format": loaded.format, "sha256": loaded.sha256, "files": loaded.files, "options": chosen, "notes": list(loaded.notes), "dropped": len(loaded.invalid),
        } | ({} if loaded.declared else {UNDECLARED: True}) | ({} if loaded.plugin is None else {READER: asdict(loaded.plugin)}),
    }
