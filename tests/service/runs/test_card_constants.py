"""Constants that an environment's card declares for learners on bags and parts: used where the user gives none, named, and nowhere else."""

import json
from argparse import Namespace
from dataclasses import replace

import pytest

from mucd_ray.certify.file.certificate import verify
from mucd_ray.cli import build_parser
from mucd_ray.data.environments.cards import CARDS, card_for
from mucd_ray.data.environments.own import UserEnvironment
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner
from mucd_ray.mechanism.outside import Outside
from mucd_ray.service.runs import commands
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import certify, training_units
from mucd_ray.service.runs.mechanisms import DEFAULT_LEARNER, PLAIN_LEARNER
from mucd_ray.service.runs.session import CARD_LEARNER_NOTE, Request, make_settings
from mucd_ray.service.runs.settings import RunSettings
from mucd_ray.service.runs.summary import describe, finish
from mucd_ray.service.runs.work import choose_states, train_and_evaluate
from mucd_ray.service.storage.store import RunStore

DECLARING = replace(card_for("CartPole-v1"), entries=2, learning_rate=0.01)
NOTE = CARD_LEARNER_NOTE.format(constants="entries 2, learning rate 0.01")


def settled(dataset, **changes):
    asked = Request(**{"dataset": dataset, "card": DECLARING, "mechanism": "bag", "bag_size": 3, "instances": 25, "states": 6, "held_out": 2} | changes)
    return make_settings(asked, load_dataset(dataset), Choices())[0]


@pytest.mark.parametrize("changes,entries,rate,named", [
    ({}, 2, 0.01, "entries 2, learning rate 0.01"),
    ({"mechanism": "partition", "bag_size": None, "parts": 4}, 2, 0.01, "entries 2, learning rate 0.01"),
    ({"fit": {"steps": 40}}, 2, 0.01, "entries 2, learning rate 0.01"),
    # What the user gives wins, all entries included.
    ({"fit": {"entries": 4}}, 4, 0.01, "learning rate 0.01"),
    ({"learner": replace(PLAIN_LEARNER, hidden=(8,))}, 2, 0.001, "entries 2"),
    ({"learner": replace(PLAIN_LEARNER, learning_rate=0.1), "fit": {"entries": 3}}, 3, 0.1, ""),
    # They are about dense networks on what was recorded.
    ({"history": 3, "learner": Learner(algorithm="dt", network="transformer", learning_rate=0.001)}, None, 0.001, ""),
    ({"mechanism": "gaussian", "bag_size": None, "fraction": 0.005}, None, DEFAULT_LEARNER.learning_rate, ""),
    ({"mechanism": "neighbours", "bag_size": None, "neighbours": 3, "instances": 1000}, None, PLAIN_LEARNER.learning_rate, ""),
    ({"trainer": Outside(kind="function", name="json:loads", sha256="0" * 64)}, None, PLAIN_LEARNER.learning_rate, ""),
])  # fmt: skip
def test_they_are_used_where_the_user_gives_none(recordings, changes, entries, rate, named):
    settings = settled(recordings["cartpole"], **changes)
    assert (settings.fit and settings.fit.entries, settings.learner.learning_rate, settings.card_note) == (entries, rate, named)
    assert [text for text in settings.assumptions if text.startswith(CARD_LEARNER_NOTE[:20])] == ([CARD_LEARNER_NOTE.format(constants=named)] if named else [])


def test_options_of_the_command_stand_beside_them(recordings, monkeypatch, tmp_path):
    (tmp_path / "card.json").write_text(json.dumps(DECLARING.to_dict()))
    asked = []
    monkeypatch.setattr(commands, "execute", lambda request, *_, **__: asked.append(request) or {"goal": None})
    for options, rate in (("", None), ("--mechanism bag --hidden 8", 0.01), ("--bag-size 3 --hidden 8 --learning-rate 0.2", 0.2), ("--mechanism bag --network transformer --history 2", 0.001), ("--hidden 8 --mechanism gaussian", 30.0)):
        parsed = build_parser().parse_args(["run", recordings["cartpole"], "--storage", "x", "--json", "--card", str(tmp_path / "card.json"), *options.split()])
        commands.start_run(parsed, lambda text: None)
        assert (asked[-1].learner and asked[-1].learner.learning_rate) == rate


def test_a_certified_run_names_them(recordings, tmp_path):
    dataset, settings = load_dataset(recordings["cartpole"]), settled(recordings["cartpole"], fit={"steps": 40, "batch": 64})
    store, units = RunStore.create_or_open(tmp_path / "run", settings, secret=b"s" * 32), training_units(settings, dataset)
    states = store.write_states(choose_states(settings, b"s" * 32, units, "cpu"))
    store.add_target(25)
    store.commit(train_and_evaluate(settings, b"s" * 32, units, states, range(25), "cpu"))
    certificate = certify(store, Choices())
    assert verify(certificate) == [] and NOTE in certificate["assumptions"] and certificate["context"]["fit"]["entries"] == 2
    assert "of the environment's card: entries 2, learning rate 0.01" in describe(finish(store, certificate))


def test_runs_of_cards_without_them_are_what_they_were(recordings):
    """Their blocks carry a hash of the settings, whose card knew none; and a shipped card that has some by now is still theirs."""
    settings = settled(recordings["cartpole"], card=None)
    values = settings.to_dict()
    assert not {"entries", "learning_rate"} & set(values["card"]) and settings.declared_by_card == {}
    assert RunSettings.from_dict(values).identity() == settings.identity()
    breakout = next(card for card in CARDS if card.entries is not None)
    assert (breakout.env_id, breakout.entries, breakout.learning_rate) == ("ALE/Breakout-v5", 6, 0.003)
    before = replace(breakout.raw(), entries=None, learning_rate=None, source="as it was described then")
    commands._check_card(Namespace(location="run"), Namespace(card=before, mechanism=settings.mechanism), None, UserEnvironment())
    with pytest.raises(MucdError, match="only on your word"):
        commands._check_card(Namespace(location="run"), Namespace(card=replace(before, make_kwargs={"game": "/tmp/mine.bin"}), mechanism=settings.mechanism), None, UserEnvironment())


@pytest.mark.parametrize(
    "began, named, words",
    [
        ({"max_episode_steps": 100}, {}, "CartPole-v1 and --max-episode-steps 100 beside it, and you name nothing"),
        ({"return_range": (0.0, 90.0), "max_episode_steps": 100}, {"max_episode_steps": 90}, "CartPole-v1 and --max-episode-steps 100 --return-range 0,90 beside it, and you name --max-episode-steps 90"),
        ({}, {"max_episode_steps": 100}, "CartPole-v1 and nothing beside it, and you name --max-episode-steps 100"),
    ],
)
def test_a_shipped_card_that_the_user_changed_is_called_so(recordings, began, named, words):
    settings = settled(recordings["cartpole"], card=None, environment=UserEnvironment(**began))
    run = Namespace(location="run"), Namespace(card=settings.card, mechanism=settings.mechanism), None
    commands._check_card(*run, UserEnvironment(**began))
    with pytest.raises(MucdError, match=f"^run began with the shipped card of {words}: name the same, which is taken only on your word$"):
        commands._check_card(*run, UserEnvironment(**named))
