"""Run as a user meets it: bad constants are refused before anything is written, and the help tells the true defaults."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from mucd_ray.cli import build_parser, main


def test_bad_runs_are_refused_before_anything_is_written(refusal, recordings, tmp_path):
    out = tmp_path / "run"
    cartpole, acrobot = recordings["cartpole"], recordings["acrobot"]
    card = tmp_path / "card.json"
    from mucd_ray.data.environments.cards import card_for

    card.write_text(json.dumps(card_for("Acrobot-v1").to_dict()))
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps({**card_for("CartPole-v1").to_dict(), "reward_range": None}))
    for name, change in (("lines", {"source": "one\ntwo"}), ("half", {"source": "\ud800"}), ("encoded", {"encoder": ["a" * 64, 4]}), ("long", {"env_id": "a" * 100_000}), ("wide", {"return_range": [-1e308, 1e308]}), ("narrow", {"return_range": [1e9, 1e9 + 1]})):
        (tmp_path / f"{name}.json").write_text(json.dumps({**card_for("CartPole-v1").to_dict(), **change}))
    np.save(tmp_path / "states.npy", np.zeros((4, 9)))
    np.save(tmp_path / "nan.npy", np.full((4, 4), np.nan))
    np.save(tmp_path / "four.npy", np.zeros((4, 4)))
    for arguments, named in [
        (["unknown/data-v0"], cartpole),
        ([cartpole, "--instances", "1"], "at least 11 are needed"),
        ([cartpole, "--eta", "0"], "eta 0.0"),
        ([cartpole, "--fraction", "1.2"], "fraction 1.2"),
        ([cartpole, "--fraction", "nan", "--noise-multiplier", "20", "--sample-rate", "0.1", "--steps", "50"], "fraction nan"),
        ([cartpole, "--instances-per-actor", "1000000"], "--instances-per-actor 1000000"),
        ([cartpole, "--noise-multiplier", "-2", "--sample-rate", "0.1", "--steps", "5"], "noise multiplier -2.0"),
        ([cartpole, "--noise-multiplier", "2"], "--sample-rate and --steps"),
        ([cartpole, "--sample-rate", "0"], "sample rate 0.0"),
        ([cartpole, "--steps", "0"], "steps 0"),
        ([cartpole, "--learning-rate", "-1"], "learning rate -1.0"),
        ([cartpole, "--hidden", "64,x"], "--hidden '64,x'"),
        ([cartpole, "--algorithm", "magic"], "magic"),
        ([cartpole, "--card", str(card)], "CartPole-v1"),
        ([cartpole, "--card", str(tmp_path / "no.json")], "no.json"),
        ([cartpole, "--states-file", str(tmp_path / "states.npy")], "(4, 9)"),
        ([cartpole, "--states-file", str(tmp_path / "nan.npy")], "nan.npy"),
        ([cartpole, "--states", "5", "--states-file", "s.npy"], "--states 5 and --states-file s.npy"),
        ([cartpole, "--held-out", "5", "--states-file", "s.npy"], "--held-out 5 and --states-file"),
        ([cartpole, "--held-out", "5", "--trusted-states", "my/own-v0"], "--held-out 5 and --trusted-states"),
        ([cartpole, "--held-out", "5", "--mechanism", "neighbours"], "--held-out 5 counts instances"),
        ([cartpole, "--actors", "0"], "--actors 0"),
        ([cartpole, "--units", "0"], "units 0"),
        ([cartpole, "--rollouts", "0"], "rollouts 0"),
        ([cartpole, "--discount", "0"], "discount 0.0"),
        ([cartpole, "--discount", "1.5"], "discount 1.5"),
        ([cartpole, "--discount", "0.9", "--card", str(bare)], "reward_range"),
        *(([cartpole, "--card", str(tmp_path / f"{name}.json")], named) for name, named in (("lines", "source 'one\\ntwo' must be one line"), ("half", "must be one line"), ("encoded", "give its file, --encoder FILE"), ("long", "at most 1000 characters"), ("wide", "within +-1e+100"), ("narrow", "wider than 1e-06 of its ends"))),
        ([cartpole, "--chosen", "by a paper\nand by hand"], "one line of printable text"),
        ([cartpole, "--max-episode-steps", "99999999999999999999"], "--max-episode-steps 99999999999999999999"),
        # Nothing would come of it, and a certificate must not say so.
        ([cartpole, "--max-episode-steps", "1000"], "CartPole-v1 cuts its episodes after 500 steps, and max_episode_steps 1000"),
        ([cartpole, "--mechanism", "bag", "--unit", "trajectory", "--bag-size", "3", "--instances", "100000000"], "100000000 instances are more than"),
        ([cartpole, "--mechanism", "bag", "--unit", "trajectory", "--bag-size", "3", "--algorithm", "c51", "--constant", "v_min=5", "--constant", "v_max=5"], "v_min 5.0 must be below v_max 5.0"),
        ([cartpole, "--mechanism", "bag", "--unit", "trajectory", "--bag-size", "3", "--network", "convolutional"], "wants images"),
        ([cartpole, "--mechanism", "bag", "--unit", "trajectory", "--bag-size", "3", "--mirrored", "--no-environment", "--states-file", str(tmp_path / "four.npy")], "--mirrored needs a mirror"),
        ([cartpole, "--until", "better"], "goal 'better'"),
        ([cartpole, "--until", "return>=2@0.01"], "goal 'return>=2@0.01'"),
        ([cartpole, "--until", "return>=0.5@0.9"], "fraction 0.9"),
        ([cartpole, "--until", "return>=0.5@0.01", "--instances", "500"], "certify at 400 or 630"),
        ([cartpole, "--until", "return>=0.5@0.01", "--instances", "50"], "certify at 100"),
        ([acrobot, "--unit", "transition", "--address", "127.0.0.1:1"], "127.0.0.1:1"),
        ([acrobot, "--unit", "transition", "--address", "a..b:6379"], "a..b:6379"),
    ]:
        message = refusal("run", *arguments, "--out", str(out))
        assert named in message, (arguments, message)
        assert not out.exists() or "--address" in arguments


def test_help_tells_the_true_defaults(capsys):
    from mucd_ray.certify.planning.plan import BATCH, STEPS
    from mucd_ray.service.runs.mechanisms import DEFAULT_CLIP_NORM, DEFAULT_LEARNER

    with pytest.raises(SystemExit):
        build_parser().parse_args(["run", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "None" not in shown and DEFAULT_LEARNER.hidden == ()
    for text in (
        f"T (default: {STEPS})", f"C (default: {DEFAULT_CLIP_NORM})", f"a batch of about {BATCH}", f"--learning-rate X of the optimiser (default: with noise {DEFAULT_LEARNER.learning_rate:g} for bc",
        f"of sgd (default: {DEFAULT_LEARNER.momentum:g})", f"averaged (default: {DEFAULT_LEARNER.average})", f"(default: {DEFAULT_LEARNER.optimiser};",
    ):
        assert text in shown, text


@pytest.mark.slow
def test_mucd_run_prints_json_only_and_continues(recordings, tmp_path):
    """Ray's processes print too: standard output must hold one JSON object all the same."""
    command = [sys.executable, "-m", "mucd_ray.cli", "run", recordings["cartpole"], "--out", str(tmp_path / "run"), "--instances", "40", "--steps", "5", "--json"]
    first = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert first.returncode == 0, first.stderr
    summary = json.loads(first.stdout)
    second = subprocess.run(command, capture_output=True, text=True)
    assert json.loads(second.stdout) == summary
    assert main(["verify", summary["certificate"]]) == 0
