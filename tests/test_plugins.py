"""Plug-ins of other packages: found without an import, imported where the user names one, never in the place of what is shipped; what is wrong with one is one line."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mucd_ray import plugins
from mucd_ray.cli import main
from mucd_ray.data.environments.cards import card_named, known_card, no_card
from mucd_ray.data.environments.features import load_features, load_features_of
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.session import Request, make_settings
from tests.foreign_plugins import write_package

TRAP = "import pathlib\npathlib.Path(__file__).with_name('sprung').write_text('')\n"
CARD = {
    "env_id": "Corridor-v0", "observation_shape": [2], "indices": [], "center": [5], "scale": [5], "clip": 3, "return_range": [-40, 10], "max_episode_steps": 40, "source": "Declared.",
}
FEATURES = """
import sys
calls = []
def good(observation): return [observation.sum(), len(observation)]
def writes(observation):
    observation[:] = 0
    return observation
def remembers(observation):
    calls.append(1)
    return len(calls)
def chance(observation):
    import numpy
    return numpy.random.random(3)
def raises(observation): raise KeyError("one\\ntwo")
def leaves(observation): sys.exit(0)
def words(observation): return "far"
def nothing(observation): return []
def ragged(observation): return [1, [2]]
def of_two(observation, seed): return [1]
def sometimes(observation):
    if observation[0] > 2: raise SystemExit(3)
    return observation[:1] if observation[0] < 1.5 else observation
value = 3
"""
FORMATS = """
import numpy as np
from dataclasses import replace
from mucd_ray.data.formats.episodes import Episode, Recording
from mucd_ray.data.formats.registry import Format
episode = Episode(observations=np.zeros((3, 2)), actions=np.array([0, 1]), rewards=np.ones(2), terminated=True, truncated=False, place="line 1", keys={})
def of(*episodes, **others): return Format(name="anything", recognised=lambda source: source.name.endswith(".good"), read=lambda source, options: Recording(episodes=list(episodes), **others))
good = of(episode, episode)
none = Format(name="none", recognised=lambda source: False, read=lambda source, options: None)
def bad(*episodes, **others): return replace(of(*episodes, **others), recognised=lambda source: False)
lists = bad(replace(episode, observations=[[0, 0]] * 3))
short = bad(replace(episode, rewards=np.ones(1)))
flags = bad(replace(episode, terminated=1))
names = bad(episode, notes=[b"one"])
both = bad(replace(episode, truncated=True))
huge = bad(replace(episode, keys={"operator": 1 << 64}))
texts = bad(replace(episode, observations=np.array([["a", "b"]] * 3)))
recorded = bad(episode, recorded=__import__("mucd_ray.data.formats.metadata", fromlist=["Recorded"]).Recorded(env_id=5, kwargs={}))
options = replace(good, options=5)
space = bad(episode, action_space="Discrete(2)")
def stop(source, options): raise SystemExit(0)
leaves = replace(good, read=stop, recognised=lambda source: source.name.endswith(".bad") and 1 / 0)
def fail(source, options): return 1 / 0
fails = replace(good, read=fail, recognised=lambda source: False)
other = dict(good=1)
unknown = replace(good, options=("tables",))
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the path, here and for processes that are started; what was imported from it is forgotten at the end."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{':'.join(path for path in sys.path if path)}")
    yield folder
    for name in [name for name, module in sys.modules.items() if str(folder) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]
    plugins._loaded.clear()


@pytest.fixture
def refused(capfd):
    def call(*arguments):
        capfd.readouterr()
        assert main(list(arguments)) == 2
        captured = capfd.readouterr()
        assert captured.out == "" and captured.err.startswith("mucd: error: ") and captured.err.count("\n") == 1, captured.err
        return captured.err

    return call


def everything(site, **files):
    """One broken plug-in of each kind, and cards that are none."""
    broken = {group: {"broken": f"broken_plugins.{group}:it"} for group in ("trainers", "formats", "cards", "features")}
    write_package(site, "broken_plugins", broken, {f"{group}.py": TRAP + "1 / 0\n" for group in broken} | files)
    bad = site / "bad_metadata-1.0.dist-info"
    bad.mkdir()
    (bad / "entry_points.txt").write_text("[mucd_ray.trainers]\nno equals sign\n")


def test_what_nobody_names_is_not_imported_and_disturbs_nothing(site, recordings, refused, capfd, tmp_path):
    everything(site)
    assert main(["card", "CartPole-v1"]) == 0 and known_card("CartPole-v1")[1] is None
    with pytest.raises(SystemExit):
        main(["--version"])
    told = capfd.readouterr().out
    assert told.count("broken (broken_plugins 1.0)") == 4 and "trainers: broken" in told and "bad" not in told
    (tmp_path / "file.nobody").write_text("?")
    run = ["run", recordings["cartpole"], "--storage", str(tmp_path / "run"), "--mechanism", "bag", "--bag-size", "3"]
    assert "also of plug-ins: broken (broken_plugins 1.0)" in refused("import", str(tmp_path / "file.nobody"), "--dataset", "own/log-v0")
    assert "dt, td3-bc, the plug-in broken (broken_plugins 1.0), or a function" in refused(*run, "--trainer", "brokn")
    assert "there are broken (broken_plugins 1.0)" in refused(*run, "--features", "brokn")
    assert "neither a file nor a plug-in" in refused(*run, "--card", "brokn")
    assert "--card NAME takes one of a plug-in: broken" in no_card("Nowhere-v0")
    assert not list((site / "broken_plugins").glob("sprung"))
    # Named, it is imported, and what it raises is told.
    for option in ("--trainer", "--features", "--card"):
        assert "broken of broken_plugins 1.0 cannot be imported (ZeroDivisionError: division by zero in " in refused(*run, option, "broken")
    assert "format broken of broken_plugins 1.0 cannot be imported" in refused("import", str(tmp_path / "file.nobody"), "--format", "broken", "--dataset", "own/log-v0")
    assert (site / "broken_plugins" / "sprung").exists() and not (tmp_path / "run").exists()


def test_nothing_is_shadowed(site, recordings, refused, tmp_path):
    taken = {"trainers": {"bc": "taken:it", "two": "taken:it"}, "formats": {"csv": "taken:it"}, "cards": {"CartPole-v1": "taken:card.json"}, "features": {"highway-gaps": "taken:it"}}
    write_package(site, "taken", taken, {"__init__.py": TRAP, "card.json": json.dumps(CARD | {"env_id": "CartPole-v1"})})
    write_package(site, "also_taken", {"trainers": {"two": "also_taken:it"}}, {})
    (tmp_path / "log.csv").write_text("obs\n1\n")
    run = ["run", recordings["cartpole"], "--storage", str(tmp_path / "run"), "--mechanism", "bag", "--bag-size", "3"]
    for option, name in (("--trainer", "bc"), ("--card", "CartPole-v1"), ("--features", "highway-gaps")):
        assert f" {name} is mucd_ray's own and also a plug-in of taken 1.0 (taken:" in refused(*run, option, name)
    assert "format csv is mucd_ray's own and also" in refused("import", str(tmp_path / "log.csv"), "--format", "csv", "--dataset", "own/log-v0")
    assert "trainer two is a plug-in of also_taken 1.0 (also_taken:it) and taken 1.0 (taken:it)" in refused(*run, "--trainer", "two")
    # By its environment's id a shipped card is found, whatever is installed.
    assert known_card("CartPole-v1")[1] is None and known_card("CartPole-v1")[0].observation_shape == (4,) and not (site / "taken" / "sprung").exists()


def test_the_hash_is_of_all_files_of_the_package_and_of_what_it_is_called(site):
    def digest(name="it", value="mine.deep.part:it", **files):
        write_package(site, "mine", {"trainers": {name: value}}, files)
        return plugins.find("trainer", name).sha256

    (site / "mine" / "deep").mkdir(parents=True)
    (site / "mine" / "deep" / "__init__.py").write_text("")
    (site / "mine" / "deep" / "part.py").write_text("")
    first = digest()
    assert digest() == first == digest(**{".swap": "x"})
    (site / "mine" / "__pycache__").mkdir()
    (site / "mine" / "__pycache__" / "x.pyc").write_text("x")
    assert digest() == first
    others = {digest(name="other"), digest(value="mine.deep.part:other"), digest(**{"weights.bin": "1"}), digest(**{"weights.bin": "2"})}
    assert len(others | {first}) == 5
    (site / "mine-1.0.dist-info" / "METADATA").write_text("Name: mine\nVersion: 1.1\n")
    assert "mine 1.1" in str(plugins.find("trainer", "it")) and "mine" not in sys.modules
    # A single file, and a package inside one that is no code.
    (site / "alone.py").write_text("it = 1\n")
    (site / "shared" / "inner").mkdir(parents=True)
    (site / "shared" / "inner" / "__init__.py").write_text("it = 1\n")
    write_package(site, "places", {"cards": {"alone": "alone:it", "inner": "shared.inner:it", "gone": "gone.part:it", "module": "alone", "bad": "not a place"}}, {})
    assert plugins.find("card", "alone").load() == plugins.find("card", "inner").load() == 1
    for name, words in (("gone", "there is no module gone"), ("module", "value 'alone:"), ("bad", "cannot be found")):
        with pytest.raises(MucdError, match=words):
            plugins.find("card", name)


def test_nothing_that_is_no_description_of_one_is_read_as_one():
    good = {"kind": "card", "name": "arm", "value": "a.b:c", "package": "a-b", "version": "1.0+x", "sha256": "0f" * 32}
    assert str(plugins.from_values([good])[0]) == "card arm of a-b 1.0+x" and plugins.from_values(()) == ()
    for change in ({"kind": "policy"}, {"name": "All is well. Trust it"}, {"value": "a"}, {"package": "a b"}, {"version": 1}, {"sha256": "0f"}, {"more": 1}):
        with pytest.raises(MucdError):
            plugins.from_values([good | change])
    for values in ("x", [1], [{}], {"kind": "card"}):
        with pytest.raises(MucdError, match="must be a list of objects"):
            plugins.from_values(values)


def test_cards_are_found_by_the_environments_id_without_an_import(site, refused, recordings, tmp_path, monkeypatch):
    names = {"arm": "arms:arm.json", "short": "arms.cards:SHORT", "dictionary": "arms.cards:FIELDS", "number": "arms.cards:number", "object": "arms.cards:OBJECT", "half": "arms:half.json", "past": "arms.cards:PAST"}
    code = f"{TRAP}from mucd_ray.data.environments.card import EnvironmentCard\nFIELDS = {CARD | {'env_id': 'arms:Corridor-v0'}}\nSHORT = EnvironmentCard.from_dict(FIELDS | {{'make_kwargs': {{'length': 5}}}})\n"
    code += "PAST = FIELDS | {'history': 2, 'observation_shape': [2, 2]}\nOBJECT = FIELDS | {'make_kwargs': {'where': object()}}\nnumber = 3\n"
    write_package(site, "arms", {"cards": names}, {"arm.json": json.dumps(CARD | {"env_id": "arms:Corridor-v0"}), "half.json": json.dumps(CARD | {"center": None}), "cards.py": code})
    card, plugin = known_card("elsewhere:Corridor-v0")
    # Neither the package nor what the card's id names.
    assert str(plugin) == "card arm of arms 1.0" and card.env_id == "Corridor-v0" and not (site / "arms" / "sprung").exists() and known_card("Corridor-v1") == (None, None)
    assert card_named("short")[0].make_kwargs == {"length": 5} and card_named("dictionary")[0].env_id == card_named("arm")[0].env_id == "arms:Corridor-v0"
    # Now the module is imported: which one?
    assert known_card("Corridor-v0", make_kwargs={"length": 5})[1].name == "short"
    with pytest.raises(MucdError, match="several plug-ins have a card of Corridor-v0: name one with --card, arm or dictionary or short"):
        known_card("Corridor-v0")
    for name, words in (("number", "is a int: it must be an EnvironmentCard"), ("half", "not complete: center"), ("object", "no JSON .Object of type object"), ("past", "history 2")):
        with pytest.raises(MucdError, match=words):
            card_named(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arm").write_text("{}")
    with pytest.raises(MucdError, match="is a file here and also the plug-in card arm of arms 1.0: write ./arm"):
        card_named("arm")


def test_features_are_functions_of_one_observation(site):
    names = ("good", "writes", "remembers", "chance", "raises", "leaves", "words", "nothing", "ragged", "of_two", "sometimes", "value", "missing")
    write_package(site, "seen", {"features": {name: f"seen.parts:{name}" for name in names}}, {"parts.py": FEATURES})
    for name in ("remembers", "chance"):
        with pytest.raises(MucdError, match=f"plug-in features {name} of seen 1.0 answers the same observation in two ways"):
            load_features(name, (4,))
    for name, words in (
        ("raises", "KeyError: 'one.+two' in .*parts.py, line 14"), ("leaves", "SystemExit: 0"), ("words", "ValueError"), ("nothing", "gives 0 outputs"), ("ragged", "ValueError"),
        ("of_two", "TypeError"), ("value", "not callable"), ("missing", "cannot be imported .AttributeError"),
    ):
        with pytest.raises(MucdError, match=words) as caught:
            load_features(name, (4,))
        assert "\n" not in str(caught.value) and "of seen 1.0" in str(caught.value)
    plugin, encoder = load_features("sometimes", (4,))
    card = card_with(plugin, encoder)
    # Where it fails on one observation, or gives another number, that one alone has none.
    rows = np.array([[1, 5, 5, 5], [3, 5, 5, 5], [1.7, 5, 5, 5], [0, 1, 1, 1]], np.float32)
    assert np.array_equal(card.features(rows), np.array([[1], [np.nan], [np.nan], [0]], np.float32), equal_nan=True)
    plugin, encoder = load_features("writes", (4,))
    assert (card_with(plugin, encoder).features(rows) == 0).all() and rows[0, 1] == 5
    load_features_of(card)
    (site / "seen" / "parts.py").write_text(FEATURES + "\n")
    with pytest.raises(MucdError, match="the features sometimes are not those with which the run began"):
        load_features_of(card)
    with pytest.raises(MucdError, match="features sometimes of seen 1.0 has changed since this process imported it: start anew"):
        load_features("sometimes", (4,))


def card_with(plugin, encoder):
    from dataclasses import replace

    return replace(known_card("CartPole-v1")[0].raw(), encoder=encoder, named_features=plugin.name)


def test_readers_that_give_something_else_than_episodes(site, refused, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    names = ("both", "huge", "texts", "recorded", "options", "good", "none", "lists", "short", "flags", "names", "space", "leaves", "fails", "other", "unknown")
    write_package(site, "readers", {"formats": {name: f"readers.parts:{name}" for name in names}}, {"parts.py": FORMATS})
    file = tmp_path / "log.good"
    file.write_text("?")
    read = ["import", str(file), "--dataset", "own/read-v0", "--actions", "2"]
    for name, words in (
        ("both", "of episode 0 are of other"), ("huge", "of episode 0 are of other"), ("texts", "only numbers are read"), ("options", "is no Format of"), ("recorded", "recorded of its Recording"),
        ("none", "gives a NoneType instead"), ("lists", "episode 0 does not have arrays"), ("short", "episode 0 does not have arrays"), ("flags", "of episode 0 are of other types"), ("names", "notes of its Recording"),
        ("space", "action_space of its Recording"), ("leaves", "fails (SystemExit"), ("fails", "ZeroDivisionError: division by zero in"), ("other", "is no Format of"), ("unknown", "is no Format of"),
    ):
        error = refused(*read, "--format", name)
        assert words in error and not (tmp_path / "data" / "own").exists()
    assert main([*read, "--format", "good", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["format"] == "good" and report["plugin"] == vars(plugins.find("format", "good")) and report["trajectories"] == 2
    assert load_dataset("own/read-v0").imported_by == plugins.find("format", "good")
    # Its module is imported by now, as --import would have it: it recognises files, and others of the same package that are none do not take part.
    assert main([*read, "--overwrite", "--json"]) == 0 and json.loads(capfd.readouterr().out)["format"] == "good"
    (tmp_path / "log.bad").write_text("?")
    assert "the plug-in format leaves fails to tell whether it is one of its files (ZeroDivisionError" in refused("inspect", str(tmp_path / "log.bad"))
    (tmp_path / "fresh.good").write_text("?")
    command = [sys.executable, "-m", "mucd_ray.cli", "inspect", str(tmp_path / "fresh.good")]
    assert subprocess.run(command, capture_output=True, text=True).returncode == 2
    done = subprocess.run([*command, "--import", "readers.parts", "--json"], capture_output=True, text=True)
    assert json.loads(done.stdout)["format"] == "good"


def test_a_dataset_and_a_run_folder_choose_none(site, recordings, tmp_path):
    """What the metadata of a dataset say of its reader is text, and a run is not continued with other plug-ins."""
    everything(site)
    dataset = load_dataset(recordings["cartpole"])
    write_package(site, "mine", {"features": {"it": "mine:it"}}, {"__init__.py": "def it(observation): return observation[:2]\n"})
    for request in (Request(dataset=dataset.name, mechanism="bag", bag_size=3, features="it"), Request(dataset=dataset.name, mechanism="gaussian", unit="transition", features="it"), Request(dataset=dataset.name, mechanism="neighbours", features="it"), Request(dataset=dataset.name, mechanism="partition", parts=4, features="it")):
        settings, _ = make_settings(request, dataset, Choices())
        assert settings.card.width == 2 and settings.problem.inputs == 2 and [str(plugin) for plugin in settings.plugins] == ["features it of mine 1.0"]
        assert type(settings).from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
        assert settings.card.features_source() == {"source": "plug-in", "card": "CartPole-v1", "encoder": settings.plugins[0].sha256, "name": "it"}
    plugins.check_same(settings.plugins, "the run")
    (site / "mine" / "more.py").write_text("")
    with pytest.raises(MucdError, match="the run began with the plug-in features it of mine 1.0, which has other files now"):
        plugins.check_same(settings.plugins, "the run")
    (site / "mine-1.0.dist-info" / "METADATA").write_text("Name: mine\nVersion: 2.0\n")
    with pytest.raises(MucdError, match="which is now features it of mine 2.0: install it as it was"):
        plugins.check_same(settings.plugins, "the run")
    (site / "mine-1.0.dist-info" / "entry_points.txt").unlink()
    with pytest.raises(MucdError, match="is not installed here"):
        plugins.check_same(settings.plugins, "the run")
    with pytest.raises(MucdError, match="--history .* is of raw observations|encoder"):
        make_settings(Request(dataset=dataset.name, mechanism="bag", bag_size=3, features="broken", encoder=b""), dataset, Choices())
    assert not (site / "broken_plugins" / "sprung").exists()
