"""Cards of what environments declare: nothing from data, nothing guessed, and what lacks is named."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from mucd_ray.data.environments.card import load_card
from mucd_ray.data.environments.cards import card_for
from mucd_ray.data.environments.make import REGISTERING, make_environment
from mucd_ray.data.environments.own import UserEnvironment, card_file, card_of, declared, declared_card
from mucd_ray.errors import MucdError
from mucd_ray.modules import import_modules

OWN = str(Path(__file__).parents[2] / "own_environment.py")
RANGE = UserEnvironment(return_range=(-40.0, 10.0))


@pytest.fixture(autouse=True)
def own():
    import_modules([OWN])


def test_a_card_says_what_the_environment_declares_and_what_it_does_not(tmp_path, refusal):
    values = declared("Corridor-v0")
    assert values["observation_shape"] == (2,) and values["max_episode_steps"] == 40 and values["reward_range"] == (-1.0, 10.0) and values["expert_return"] == 3.0
    # At least one step, at most 40, each of which earns -1 to 10.
    assert values["return_range"] == (-40.0, 400.0) and (values["center"], values["scale"]) == ((15.0, None), (16.0, None))
    text, missing = card_file(declared("Endless-v0"))
    assert missing == ["center", "scale", "return_range", "max_episode_steps"]
    (tmp_path / "card.json").write_text(text)
    assert "is not complete: center, scale, return_range, max_episode_steps must be filled in" in refusal(load_card, tmp_path / "card.json")
    filled = json.loads(text) | {"center": [15, 5], "scale": [16, 10], "return_range": [-40, 10], "max_episode_steps": 40}
    (tmp_path / "card.json").write_text(json.dumps(filled))
    card = load_card(tmp_path / "card.json")
    assert card.clip_returns and card.make().spec.max_episode_steps == 40
    np.testing.assert_allclose(card.features(np.array([31.0, -5.0])), [1.0, -1.0])
    # The marks alone, without the list, are refused as well.
    (tmp_path / "card.json").write_text(json.dumps({name: value for name, value in filled.items() if name != "missing"} | {"scale": [16, None]}))
    assert "scale must be filled in" in refusal(load_card, tmp_path / "card.json")


@pytest.mark.parametrize("missing", [3, [3], {"a": 1}, None])
def test_a_list_of_missing_fields_may_be_anything(tmp_path, missing, refusal):
    (tmp_path / "card.json").write_text(json.dumps(card_for("CartPole-v1").to_dict() | {"missing": missing}))
    assert load_card(tmp_path / "card.json") == card_for("CartPole-v1")


def test_every_kind_of_numbers_is_scaled_by_its_bounds():
    from mucd_ray.data.environments.own import _scales

    spaces = gym.spaces
    assert _scales(spaces.Box(0, 255, (4, 4), np.uint8)) == ((127.5,), (127.5,))
    assert _scales(spaces.Discrete(5, start=2)) == ((4.0,), (2.0,)) and _scales(spaces.MultiBinary(3)) == ((0.5,), (0.5,))
    assert _scales(spaces.MultiDiscrete([3, 1])) == ((1.0, 0.0), (1.0, 1.0))
    assert _scales(spaces.Box(-np.inf, np.inf, (2,))) == ((None,), (None,)) and _scales(spaces.Box(-3e38, 3e38, (2,))) == ((None,), (None,))


def test_without_a_card_the_return_range_is_enough_for_raw_observations_and_bounds_are_needed_to_scale():
    card = declared_card("own_environment:Corridor-v0", RANGE, scaled=False)
    assert card == card.raw() and card.env_id == "Corridor-v0" and card.clip_returns and card.return_range == (-40.0, 10.0) and card.max_episode_steps == 40
    with pytest.raises(MucdError, match="no environment card is shipped for 'Corridor-v0'.*--return-range LO,HI.*--card FILE"):
        declared_card("Corridor-v0", UserEnvironment(), scaled=False)
    with pytest.raises(MucdError, match="declares no bounds.*mucd card Corridor-v0 --out FILE.*--mechanism bag"):
        declared_card("Corridor-v0", RANGE, scaled=True)
    with pytest.raises(MucdError, match="key words are in a space of type Text"):
        declared_card("Told-v0", RANGE, scaled=False)
    with pytest.raises(MucdError, match="'Nobodys-v0' cannot be made.*--import MODULE"):
        declared_card("Nobodys-v0", RANGE, scaled=False)
    with pytest.raises(MucdError, match="Endless-v0 has no time limit.*--max-episode-steps N"):
        declared_card("Endless-v0", RANGE, scaled=False).make()
    limited = declared_card("Endless-v0", UserEnvironment(return_range=(-40.0, 10.0), max_episode_steps=7), scaled=False).make()
    limited.reset(seed=0)
    assert [limited.step(0)[3] for _ in range(7)] == [False] * 6 + [True]


def test_an_id_that_a_dataset_names_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("import pathlib\npathlib.Path(__file__).with_name('sprung').write_text('')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MucdError, match="'Anything-v0' cannot be made"):
        declared_card("trap:Anything-v0", RANGE, scaled=False)
    assert card_of("trap:CartPole-v1", UserEnvironment(), scaled=False).env_id == "CartPole-v1"
    assert not (tmp_path / "sprung").exists()


def test_what_the_user_says_stands_before_the_card():
    cartpole = card_for("CartPole-v1")
    said = UserEnvironment(return_range=(0.0, 100.0), max_episode_steps=100)
    card = card_of("CartPole-v1", said, scaled=True)
    assert (card.return_range, card.clip_returns, card.max_episode_steps, card.scale) == ((0.0, 100.0), True, 100, cartpole.scale)
    assert card_of("x:CartPole-v1", UserEnvironment(), cartpole, scaled=True) == cartpole
    # Other arguments than those of the shipped card are another environment.
    assert card_of("LunarLander-v3", UserEnvironment(make_kwargs={"continuous": True}), scaled=True).make_kwargs == {"continuous": True}
    windy = UserEnvironment(make_kwargs={"enable_wind": True}, return_range=(-500.0, 300.0))
    assert card_of("LunarLander-v3", windy, scaled=False).make_kwargs == {"enable_wind": True}
    with pytest.raises(MucdError, match="not those of the card of CartPole-v1"):
        card_of("CartPole-v1", windy, cartpole, scaled=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [("imports", ("a b",)), ("imports", ("",)), ("imports", ("a", "a")), ("imports", ("a;b",)), ("max_episode_steps", 0), ("return_range", (1.0, 1.0)), ("return_range", (0.0, np.inf)), ("return_range", (np.nan, 1.0))],
)
def test_what_cannot_be_said_of_an_environment(field, value):
    with pytest.raises(MucdError, match=f"^--{field.removesuffix('s').replace('_', '-').replace('max-episode-step', 'max-episode-steps')} "):
        UserEnvironment(**{field: value})


def test_packages_that_register_environments_are_named():
    prefix, (module, package) = next(iter(REGISTERING.items()))
    assert prefix == "MiniGrid-"
    try:
        __import__(module)
    except ImportError:
        with pytest.raises(MucdError, match=f"'MiniGrid-Empty-5x5-v0' is registered by minigrid, which cannot be imported.*pip install {package}"):
            make_environment("MiniGrid-Empty-5x5-v0")
    # An id of one's own that begins alike needs no such package.
    gym.register("PandaOfMine-v0", entry_point=gym.registry["Corridor-v0"].entry_point, max_episode_steps=3)
    make_environment("PandaOfMine-v0").close()


@pytest.mark.parametrize(
    ("code", "words"),
    [("x = 1\nraise SystemExit(3)", "SystemExit: 3 in .*broken.py, line 2"), ("import nothing_such", "ModuleNotFoundError: No module named 'nothing_such' in .*broken.py, line 1"), ("x = (", r"SyntaxError: .*\(broken.py, line 1\)")],
)
def test_a_module_that_cannot_be_imported_is_one_line_with_the_place(tmp_path, code, words):
    (tmp_path / "broken.py").write_text(code)
    for _ in range(2):
        with pytest.raises(MucdError, match=f"^--import .*broken.py cannot be imported \\({words}\\): [^\n]*$"):
            import_modules([str(tmp_path / "broken.py")])
    with pytest.raises(MucdError, match="^--import no_such_module cannot be imported"):
        import_modules(["no_such_module"])


def test_dictionaries_need_no_card_either():
    import own_spaces  # noqa: F401  registers them

    keys = ("way", "near", "count")
    card = declared_card("own_spaces/Rooms-v0", RANGE, scaled=False, observation_keys=keys)
    assert card.observation_shape == (14,) and card.observation_keys == tuple(sorted(keys)) and card == card.of_keys(keys)
    with card.make() as environment:
        assert environment.reset(seed=0)[0].shape == (14,)
