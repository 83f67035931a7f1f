"""Arguments as a user meets them: help, and one clear line and exit status 2 for bad input."""

import subprocess
import sys

import pytest

from mucd_ray.cli import build_parser, main

MECHANISM = ["--sample-rate", "0.002", "--noise-multiplier", "3", "--steps", "1000"]


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["tradeoff", "--sample-rate", "1.5", "--noise-multiplier", "3", "--steps", "10", "--inserted", "1", "--removed", "0", "--probability", "0.5"], "sample rate 1.5"),
        (["tradeoff", "--sample-rate", "0.1", "--noise-multiplier", "0", "--steps", "10", "--inserted", "1", "--removed", "0", "--probability", "0.5"], "noise multiplier 0.0"),
        (["tradeoff", *MECHANISM, "--inserted", "1", "--removed", "0", "--probability", "1.5"], "probability 1.5"),
        (["tradeoff", *MECHANISM, "--inserted", "-1", "--removed", "0", "--probability", "0.5"], "inserted -1"),
        (["tradeoff", *MECHANISM, "--inserted", "-1", "--removed", "2", "--probability", "0.5", "--accountant", "adp-group"], "inserted -1"),
        (["tradeoff", *MECHANISM, "--inserted", "5", "--removed", "-2", "--probability", "0.5", "--accountant", "published"], "removed -2"),
        (["tradeoff", *MECHANISM, "--inserted", "99999999", "--removed", "2", "--probability", "0.5", "--accountant", "adp-group"], "a group of 100000001 units"),
        (["radius", *MECHANISM, "--top", "0.1", "--runner-up", "0.9"], "runner-up 0.9 is above top 0.1"),
        (["radius", *MECHANISM, "--top", "nan", "--runner-up", "0.1"], "top nan"),
        (["radius", *MECHANISM, "--top", "0.9", "--runner-up", "-0.1"], "runner-up -0.1"),
        *((["radius", *MECHANISM, "--top", "0.9", "--runner-up", "0.1", "--units", units], f"units {units}") for units in ("0", "-5", str(2**63 - 1), "1" + "0" * 20)),
        (["plan", "--units", "1" + "0" * 400, "--fraction", "0.1"], "units 1000"),
        (["plan", "--units", "100", "--fraction", "0.1", "--instances", "1" + "0" * 30], "instances 1000"),
        (["plan", "--units", "100", "--fraction", "0.1", "--actions", "1" + "0" * 30], "actions 1000"),
        (["verify", "nowhere.json", "--patience", "0"], "patience 0.0"),
        (["plan", "--units", "100", "--fraction", "2", "--instances", "100"], "fraction 2.0"),
        (["plan", "--units", "100"], "a fraction of the units or a radius"),
        (["plan", "--units", "100", "--radius", "101"], "radius 101"),
        (["plan", "--units", "100", "--radius", "5", "--solve", "steps"], "a noise multiplier must be given"),
        (["plan", "--units", "100", "--radius", "5", "--agreement", "0.4"], "agreement 0.4"),
        (["plan", "--units", "20000", "--radius", "200", "--noise-multiplier", "0.5", "--solve", "steps"], "even 1 step"),
        (["plan", "--units", "100", "--frontier", "/no/such/folder/f.png"], "f.png"),
        (["plan", "--units", "100", "--fraction", "0.1", "--instances", "1"], "at least 11 are needed"),
        (["verify", "nowhere.json"], "nowhere.json"),
        (["report", "."], "not a run folder"),
        (["grow", "nowhere", "--instances", "100"], "nowhere is not a run folder"),
        (["certify", "nowhere", "--eta", "7"], "nowhere is not a run folder"),
        (["record", "CartPole-v1", "--dataset", "bad id"], "bad id"),
        (["record", "Pong-v77", "--dataset", "pong/a-v0"], "Pong-v77"),
        (["record"], "environment"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(refusal, arguments, named):
    assert named in refusal(*arguments)


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["run", "x", "--out", "y", "--inference", "guess"], "guess"),
        (["run", "x", "--out", "y", "--rollouts", "2.5"], "2.5"),
        (["run", "x", "--out", "y", "--discount", "half"], "half"),
        *((["run", "x", "--out", "y", option, ""], f"{option}: it is empty") for option in ("--card", "--encoder", "--tuned", "--states-file", "--source-key")),
        (["run", "x", "--out", "y", "--chosen", " "], "--chosen: it is empty"),
        (["certify", "x", "--looks", "often"], "often"),
        (["certify", "x", "--until", "return>=0.5@0.01"], "--until"),
        (["grow", "x", "--until", "return>=0.5@0.01"], "--instances"),
        (["run", "x", "--until"], "--until"),
        (["dance"], "dance"),
    ],
)
def test_arguments_that_do_not_parse_are_one_line_and_exit_status_2(capsys, arguments, named):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == "" and named in captured.err
    assert captured.err.startswith("mucd: error: ") and captured.err.count("\n") == 1


def test_help_shows_defaults_and_an_example_and_needs_no_heavy_import():
    for command in ("record", "card", "run", "grow", "certify", "verify", "report", "plan", "tradeoff", "radius"):
        result = subprocess.run([sys.executable, "-X", "importtime", "-m", "mucd_ray.cli", command, "--help"], capture_output=True, text=True)
        assert result.returncode == 0 and f"example: mucd {command}" in " ".join(result.stdout.split())
        assert "default:" in result.stdout or command in ("verify", "report")
        assert "| torch" not in result.stderr and " ray\n" not in result.stderr


def test_help_fits_a_terminal_and_names_what_is_needed_first(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    for command, needed in (("run", "usage: mucd run --storage PATH [OPTION ...] dataset"), ("record", "usage: mucd record [OPTION ...] [environment]"), ("verify", "usage: mucd verify [-h] [--json] [--patience N] certificate")):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == needed and max(map(len, lines)) <= 80


def test_a_tilde_in_an_option_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = build_parser().parse_args(["run", "some/data-v0", "--storage=~/x", "--card=~/card.json", "--tuned=~/t.json", "--states-file=~/s.npy"])
    assert [options.storage, options.card, options.tuned, options.states_file] == [str(tmp_path / name) for name in ("x", "card.json", "t.json", "s.npy")]
    assert build_parser().parse_args(["run", "some/data-v0", "--storage=s3://bucket/~/x"]).storage == "s3://bucket/~/x"
