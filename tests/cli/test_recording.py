"""`mucd card`, and options about an environment."""

import json
from pathlib import Path

import pytest

from mucd_ray.cli import build_parser, main

OWN = str(Path(__file__).parents[1] / "own_environment.py")


def test_a_card_is_written_of_an_environment_or_of_that_of_a_dataset(recordings, tmp_path, capfd):
    assert main(["card", "own_environment:Corridor-v0", "--import", OWN, "--return-range", "-40,10", "--json"]) == 0
    printed, told = capfd.readouterr()
    assert json.loads(printed)["missing"] == ["center", "scale"] and json.loads(printed)["return_range"] == [-40, 10]
    assert "mucd: scale is not declared and to be filled in, never from the data" in told
    file = tmp_path / "cartpole.json"
    assert main(["card", recordings["cartpole"], "--out", str(file), "--json"]) == 0
    printed, told = capfd.readouterr()
    values = json.loads(file.read_text())
    assert json.loads(printed) == {"card": str(file), "missing": ["center", "scale", "return_range"]} and values["missing"] == ["center", "scale", "return_range"]
    # Declared: positions and angles have bounds, speeds have none; 475 is what Gymnasium registers. What was recorded is not looked at.
    assert values["env_id"] == "CartPole-v1" and values["max_episode_steps"] == 500 and values["expert_return"] == 475 and [scale is None for scale in values["scale"]] == [False, True, False, True]
    assert "a card is shipped for this environment" in told
    assert main(["card", "CartPole-v1", "--out", str(file)]) == 2 and "cartpole.json" in capfd.readouterr().err and json.loads(file.read_text()) == values
    assert main(["run", recordings["cartpole"], "--card", str(file), "--storage", str(tmp_path / "run")]) == 2
    assert "is not complete: center, scale, return_range must be filled in by you" in capfd.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("text", "wanted"), [("-500,330", (-500, 330)), ("-5e2,-1.5", (-500, -1.5)), ("0,.5", (0, 0.5))])
def test_ranges_may_begin_with_a_minus(text, wanted):
    assert build_parser().parse_args(["run", "x-v0", "--storage", "r", "--return-range", text, "--json"]).return_range == wanted
    assert build_parser().parse_args(["run", "x-v0", f"--return-range={text}", "--storage", "r"]).return_range == wanted


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--return-range", "1"], "two numbers with a comma"), (["--return-range", "3,1"], "the lower first"), (["--return-range", "0,inf"], "two finite numbers"), (["--make-kwargs", "[]"], "must be a JSON object"), (["--make-kwargs", '{"colour": 3}'], "colour"), (["--max-episode-steps", "0"], "--max-episode-steps 0"), (["--max-episode-steps", "501"], "cuts its episodes after 500 steps"), (["--import", "no_such_thing"], "No module named 'no_such_thing'")],
)
def test_what_cannot_be_said_of_an_environment_is_one_line(arguments, words, capfd):
    try:
        status = main(["card", "CartPole-v1", *arguments])
    except SystemExit as end:
        status = end.code
    printed, error = capfd.readouterr()
    assert status == 2 and printed == "" and words in error and error.count("\n") == 1
