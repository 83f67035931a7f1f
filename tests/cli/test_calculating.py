"""Plan, tradeoff and radius: fixed names and outputs, bounds on the safe side, no traceback whatever the options."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mucd_ray.cli import main
from mucd_ray.mechanism.work import TooMuchWork, limited_to, spend

MECHANISM = ["--sample-rate", "0.002", "--noise-multiplier", "3", "--steps", "1000"]


def test_tradeoff_prints_bounds_in_the_order_asked(answer):
    bounds = answer("tradeoff", *MECHANISM, "--inserted", "30", "--removed", "2", "--probability", "0.99", "0.5")
    assert set(bounds) == {"lower", "upper"} and bounds["lower"][0] > bounds["lower"][1]
    assert bounds["upper"][1] == pytest.approx(1 - bounds["lower"][1])
    same = answer("tradeoff", *MECHANISM, "--inserted", "0", "--removed", "0", "--probability", "0.3")
    assert same["lower"] == [0.3] and same["upper"] == pytest.approx([0.3])
    weaker = answer("tradeoff", *MECHANISM, "--inserted", "30", "--removed", "2", "--probability", "0.99", "--accountant", "rdp")
    assert weaker["lower"][0] < bounds["lower"][0]


@pytest.mark.parametrize("threat", ["symmetric", "insert", "remove", "substitute"])
def test_radius(answer, threat):
    found = answer("radius", *MECHANISM, "--top", "0.99", "--runner-up", "0.01", "--threat", threat)["radius"]
    assert 40 < found < 130
    assert answer("radius", *MECHANISM, "--top", "0.5", "--runner-up", "0.5", "--threat", threat) == {"radius": None, "floor": False}


def test_a_radius_says_where_its_search_ended_and_never_gives_away_what_top_leaves(capfd, answer):
    question = ["radius", *MECHANISM, "--top", "0.99", "--runner-up", "0.01", "--threat", "insert"]
    full = answer(*question)
    assert not full["floor"] and answer(*question, "--units", str(full["radius"] - 1)) == {"radius": full["radius"] - 1, "floor": True}
    assert answer(*question, "--units", str(2**53)) == full
    # Others cannot have more than what the top action leaves.
    assert answer(*question[:-3], "0.5", "--threat", "insert") == full
    weak = ["--sample-rate", "1e-9", "--noise-multiplier", "100", "--steps", "1", "--top", "0.99", "--runner-up", "0.01", "--units", "1000000000"]
    assert answer("radius", *weak, "--threat", "insert") == {"radius": 10**8, "floor": True}
    assert answer("radius", *weak, "--threat", "substitute") == {"radius": 5 * 10**7, "floor": True}
    assert main(["radius", *weak, "--threat", "insert"]) == 0 and capfd.readouterr().out == "r = 100000000 at least: no larger group is accounted for\n"


def test_bounds_are_printed_on_the_safe_side(capfd, answer):
    question = ["tradeoff", *MECHANISM, "--inserted", "1", "--removed", "0", "--probability", "0.9999997", "0.5"]
    bounds = answer(*question)
    assert main(question) == 0
    rows = [[float(cell) for cell in line.split()] for line in capfd.readouterr().out.splitlines()[1:]]
    for row, p, lower, upper in zip(rows, (0.9999997, 0.5), bounds["lower"], bounds["upper"], strict=True):
        assert row[0] == p and lower - 1e-5 * (1 - lower) <= row[1] <= lower and upper <= row[2] < 1


NUMBERS = st.sampled_from(["0", "-1", "1", "2", "5", "30", "1000", "1e999", "-inf", "nan", "0.5", "1e-9", "5e-324", "0.999", "1e9", "9" * 20, "9" * 5000, "0x10", "1_0", "", "\x1b[2J", "٣"]) | st.floats().map(repr) | st.integers().map(str)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_the_options_no_traceback(capfd, data):
    """Values of options as text, most of them foul: an answer, or one line and exit status 2."""
    options = {
        "tradeoff": ["--sample-rate", "--noise-multiplier", "--steps", "--inserted", "--removed", "--probability"],
        "radius": ["--sample-rate", "--noise-multiplier", "--steps", "--top", "--runner-up", "--units"],
        "plan": ["--units", "--fraction", "--radius", "--instances", "--noise-multiplier", "--steps", "--sample-rate", "--agreement", "--actions", "--eta"],
    }
    usual = {
        "--sample-rate": "0.01", "--noise-multiplier": "4", "--steps": "20", "--inserted": "3", "--removed": "2", "--probability": "0.9", "--top": "0.9", "--runner-up": "0.1",
        "--units": "500", "--fraction": "0.01", "--agreement": "0.9", "--actions": "3", "--eta": "0.01", "--radius": "5", "--instances": "100",
    }
    command = data.draw(st.sampled_from(list(options)))
    names = options[command] if command != "plan" else ["--units", *data.draw(st.sets(st.sampled_from(options["plan"][1:]), max_size=5))]
    foul = data.draw(st.sets(st.sampled_from(names), max_size=2))
    # With "=" a value may begin with a minus.
    arguments = [f"{name}={data.draw(NUMBERS) if name in foul else usual[name]}" for name in names]
    accountant = data.draw(st.sampled_from(["tradeoff", "rdp", "adp-group", "published"]))
    try:
        with limited_to(3e8):
            status = main([command, *arguments, "--accountant", accountant])
    except SystemExit as stop:
        status = stop.code
    captured = capfd.readouterr()
    assert status in (0, 2), captured
    assert all(line.isprintable() for line in (captured.out + captured.err).split("\n"))
    if status == 2:
        assert captured.out == "" and captured.err.startswith("mucd: error: ") and captured.err.count("\n") == 1


def test_plan_answers_with_a_mechanism_that_radius_confirms(answer):
    plan = answer("plan", "--units", "5000", "--fraction", "0.02", "--instances", "300")
    top = (0.001 / 2) ** (1 / 300)
    found = answer(
        "radius", "--sample-rate", str(plan["sample_rate"]), "--noise-multiplier", str(plan["noise_multiplier"]),
        "--steps", str(plan["steps"]), "--top", str(top), "--runner-up", str(1 - top),
    )
    assert found["radius"] >= 100 == 0.02 * 5000


def test_plan_solves_for_what_it_is_asked_for(answer):
    question = ["plan", "--units", "5000", "--radius", "50", "--threat", "insert"]
    noise = answer(*question, "--instances", "500")["noise_multiplier"]
    for solve, least in (("steps", 100), ("sample-rate", 1024 / 5000 - 1e-3), ("instances", 400)):
        found = answer(*question, "--noise-multiplier", str(noise), "--solve", solve, *(() if solve == "instances" else ("--instances", "500")))
        assert found["solved"] == solve and found["radius"] >= 50
        assert least <= found[solve.replace("-", "_")] <= 1.3 * least
    assert answer(*question, "--agreement", "0.95")["noise_multiplier"] > noise


def test_plan_plots_the_frontier(answer, tmp_path):
    file = tmp_path / "frontier.png"
    rows = answer("plan", "--units", "2000", "--threat", "insert", "--instances", "50", "--frontier", str(file))["frontier"]
    assert {row["instances"] for row in rows} == {50, 100, 1000, 10_000}
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_bag_then_noise_has_the_same_commands(answer, capfd):
    asked = ["--mechanism", "bag-then-noise", "--units", "1000", "--bag-size", "20", "--sample-rate", "1", "--noise-multiplier", "5", "--steps", "100"]
    found = {draws: answer("radius", *asked, "--draws", draws, "--top", "0.9924", "--runner-up", "0.0076")["radius"] for draws in ("poisson", "fixed")}
    assert 60 < found["poisson"] < 75 and 34 <= found["fixed"] < 45
    assert answer("radius", *asked, "--top", "0.9924", "--runner-up", "0.0076")["radius"] == found["poisson"]
    bounds = answer("tradeoff", *asked, "--inserted", "3", "--removed", "2", "--probability", "0.9")
    assert 0.8 < bounds["lower"][0] < 0.9 < bounds["upper"][0]
    for changes, complaint in ((["--draws", "replacement"], "'replacement' do not go with noise"), (["--parts", "3"], "--parts 3 is not an option"), (["--accountant", "rdp"], "'rdp' is for the gaussian")):
        assert main(["radius", *asked, *changes, "--top", "0.99", "--runner-up", "0.01"]) == 2 and complaint in capfd.readouterr().err
    assert main(["radius", *asked[:-2], "--top", "0.99", "--runner-up", "0.01"]) == 2 and "needs --steps" in capfd.readouterr().err


@pytest.mark.parametrize("draws", ["fixed", "replacement", "poisson"])
@pytest.mark.parametrize("mechanism", [["bag"], ["bag-then-noise", "--sample-rate", "1", "--noise-multiplier", "5", "--steps", "10"]], ids=lambda words: words[0])
@pytest.mark.parametrize("question", [["tradeoff", "--inserted", "1", "--removed", "0", "--probability", "0.9"], ["radius", "--top", "0.99", "--runner-up", "0.01"]], ids=lambda words: words[0])
def test_a_bag_above_the_number_of_units_is_refused(question, mechanism, draws, capfd):
    if mechanism[0] != "bag" and draws == "replacement":
        return  # these do not go together
    assert main([*question, "--mechanism", *mechanism, "--draws", draws, "--units", "20", "--bag-size", "21"]) == 2
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1 and "bag size 21 is above the number of trajectories, 20" in errors


def test_a_plan_says_what_it_would_take_and_bags_are_compared_where_noise_is_none(monkeypatch, capfd):
    monkeypatch.setattr("mucd_ray.cli.calculating.MOST_OPERATIONS", 1e6)
    assert main(["plan", "--units", "20000", "--fraction", "0.01", "--steps", "10000000"]) == 2
    assert "needs more than 1e+06 operations: ask for fewer steps or units, or allow N times that by --patience N" in capfd.readouterr().err
    monkeypatch.undo()
    assert main(["plan", "--units", str(2**53), "--fraction", "0.01", "--unit", "trajectory", "--json"]) == 0
    compared = json.loads(capfd.readouterr().out)
    gaussian, bag, *_ = compared["mechanisms"]
    assert "below 1e-09" in gaussian["refused"] and bag["mechanism"]["bag_size"] > 1 and compared["recommended"] == "bag"


@pytest.mark.parametrize("question", ["radius --top .999 --runner-up .001", "tradeoff --inserted 3 --removed 0 --probability .9"])
def test_a_question_about_many_steps_is_refused_before_it_takes_minutes(question, capfd):
    assert main([*question.split(), "--sample-rate", "0.5", "--steps", "10000000", "--noise-multiplier", "1e9", "--patience", "1e-6"]) == 2
    assert "operations: ask for fewer steps or units, or allow N times that by --patience N" in capfd.readouterr().err


def test_work_is_counted_within_an_outer_limit():
    with limited_to(100):
        with limited_to(1000):
            spend(60)
        with pytest.raises(TooMuchWork), limited_to(1000):
            spend(60)


def test_the_row_of_noise_is_the_plan_that_was_asked_for(answer):
    found = answer("plan", "--units", "1000", "--fraction", "0.01", "--unit", "trajectory", "--steps", "1", "--sample-rate", "1", "--instances", "200")
    row = found["mechanisms"][0]["mechanism"]
    assert row["steps"] == found["steps"] == 1 and row["noise_multiplier"] == found["noise_multiplier"]


def test_a_plan_of_several_mechanisms_refuses_what_one_alone_refuses(answer, capfd):
    asked = ["plan", "--units", "1000", "--unit", "trajectory", "--radius", "10"]
    for wrong in (["--sample-rate", "inf"], ["--steps", "-5"], ["--noise-multiplier", "2"], ["--accountant", "rdp", "--radius", "1001"], ["--eta=-inf"], ["--actions", "0"], ["--instances", "0"]):
        assert main([*asked, *wrong]) == 2 and capfd.readouterr().out == "", wrong
    # Each of r replaced units takes a vote from the first action and gives one to another.
    for agreement, radius in (("1", 49), ("0.9", 39)):
        of_symmetric, of_replaced = (answer(*asked, "--agreement", agreement, "--threat", threat)["mechanisms"][3] for threat in ("symmetric", "substitute"))
        assert of_replaced["mechanism"]["neighbours"] == 100 and of_replaced["radius"] == radius <= of_symmetric["radius"]
    assert main([*asked, "--threat", "substitute", "--agreement", "0.9"]) == 0
    assert "leads by a fifth of the votes nearby, at 39 where a share of 0.9 agrees" in capfd.readouterr().out
