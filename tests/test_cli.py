"""The command line as a user meets it: fixed names and outputs, one clear line and exit status 2 for bad input."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mucd_ray.certify.file.certificate import make_certificate, make_inputs
from mucd_ray.certify.file.evidence import votes_evidence
from mucd_ray.cli import build_parser, main
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.work import limited_to

MECHANISM = ["--sample-rate", "0.002", "--noise-multiplier", "3", "--steps", "1000"]


def answer(capfd, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def refusal(capfd, *arguments):
    assert main(list(arguments)) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    assert captured.err.startswith("mucd: error: ") and captured.err.count("\n") == 1
    return captured.err


def test_tradeoff_prints_bounds_in_the_order_asked(capfd):
    bounds = answer(capfd, "tradeoff", *MECHANISM, "--inserted", "30", "--removed", "2", "--probability", "0.99", "0.5")
    assert set(bounds) == {"lower", "upper"} and bounds["lower"][0] > bounds["lower"][1]
    assert bounds["upper"][1] == pytest.approx(1 - bounds["lower"][1])
    same = answer(capfd, "tradeoff", *MECHANISM, "--inserted", "0", "--removed", "0", "--probability", "0.3")
    assert same["lower"] == [0.3] and same["upper"] == pytest.approx([0.3])
    weaker = answer(capfd, "tradeoff", *MECHANISM, "--inserted", "30", "--removed", "2", "--probability", "0.99", "--accountant", "rdp")
    assert weaker["lower"][0] < bounds["lower"][0]


@pytest.mark.parametrize("threat", ["symmetric", "insert", "remove", "substitute"])
def test_radius(capfd, threat):
    found = answer(capfd, "radius", *MECHANISM, "--top", "0.99", "--runner-up", "0.01", "--threat", threat)["radius"]
    assert 40 < found < 130
    assert answer(capfd, "radius", *MECHANISM, "--top", "0.5", "--runner-up", "0.5", "--threat", threat) == {"radius": None, "floor": False}


def test_a_radius_says_where_its_search_ended_and_never_gives_away_what_top_leaves(capfd):
    question = ["radius", *MECHANISM, "--top", "0.99", "--runner-up", "0.01", "--threat", "insert"]
    full = answer(capfd, *question)
    assert not full["floor"] and answer(capfd, *question, "--units", str(full["radius"] - 1)) == {"radius": full["radius"] - 1, "floor": True}
    assert answer(capfd, *question, "--units", str(2**53)) == full
    # Others cannot have more than what the top action leaves.
    assert answer(capfd, *question[:-3], "0.5", "--threat", "insert") == full
    weak = ["--sample-rate", "1e-9", "--noise-multiplier", "100", "--steps", "1", "--top", "0.99", "--runner-up", "0.01", "--units", "1000000000"]
    assert answer(capfd, "radius", *weak, "--threat", "insert") == {"radius": 10**8, "floor": True}
    assert answer(capfd, "radius", *weak, "--threat", "substitute") == {"radius": 5 * 10**7, "floor": True}
    assert main(["radius", *weak, "--threat", "insert"]) == 0 and capfd.readouterr().out == "r = 100000000 at least: no larger group is accounted for\n"


def test_bounds_are_printed_on_the_safe_side(capfd):
    question = ["tradeoff", *MECHANISM, "--inserted", "1", "--removed", "0", "--probability", "0.9999997", "0.5"]
    bounds = answer(capfd, *question)
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


def test_plan_answers_with_a_mechanism_that_radius_confirms(capfd):
    plan = answer(capfd, "plan", "--units", "5000", "--fraction", "0.02", "--instances", "300")
    top = (0.001 / 2) ** (1 / 300)
    found = answer(
        capfd, "radius", "--sample-rate", str(plan["sample_rate"]), "--noise-multiplier", str(plan["noise_multiplier"]),
        "--steps", str(plan["steps"]), "--top", str(top), "--runner-up", str(1 - top),
    )
    assert found["radius"] >= 100 == 0.02 * 5000


def test_plan_solves_for_what_it_is_asked_for(capfd):
    question = ["plan", "--units", "5000", "--radius", "50", "--threat", "insert"]
    noise = answer(capfd, *question, "--instances", "500")["noise_multiplier"]
    for solve, least in (("steps", 100), ("sample-rate", 1024 / 5000 - 1e-3), ("instances", 400)):
        found = answer(capfd, *question, "--noise-multiplier", str(noise), "--solve", solve, *(() if solve == "instances" else ("--instances", "500")))
        assert found["solved"] == solve and found["radius"] >= 50
        assert least <= found[solve.replace("-", "_")] <= 1.3 * least
    assert answer(capfd, *question, "--agreement", "0.95")["noise_multiplier"] > noise


def test_plan_plots_the_frontier(capfd, tmp_path):
    file = tmp_path / "frontier.png"
    rows = answer(capfd, "plan", "--units", "2000", "--threat", "insert", "--instances", "50", "--frontier", str(file))["frontier"]
    assert {row["instances"] for row in rows} == {50, 100, 1000, 10_000}
    assert file.read_bytes().startswith(b"\x89PNG")


def test_verify_accepts_the_true_and_rejects_the_edited(capfd, tmp_path):
    inputs = make_inputs(
        mechanism=Mechanism(sample_rate=0.1, noise_multiplier=20.0, clip_norm=1.0, steps=10, normaliser=1.0),
        units=500, radius_cap=20, actions=votes_evidence(np.array([[40, 0]])), returns=np.arange(40.0), return_range=(0, 50),
    )
    certificate = make_certificate(inputs, assumptions=["VALID for every r."], context={})
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(certificate))
    assert main(["verify", str(path)]) == 0
    shown = capfd.readouterr().out.splitlines()
    # The maker's own sentences are marked as such.
    assert shown[0].startswith("VALID") and shown[-2:] == ["Further assumptions, in the words of the certificate's maker, which nothing checks:", "> VALID for every r."]
    certificate["results"]["policy"]["keeps"]["0.5"]["radius"] += 1
    path.write_text(json.dumps(certificate))
    assert main(["verify", str(path)]) == 1 and "INVALID" in capfd.readouterr().out
    assert "not JSON" in (path.write_text("{") and refusal(capfd, "verify", str(path)))


def test_a_hostile_certificate_is_harmless_and_cheap(capfd, tmp_path):
    path = tmp_path / "certificate.json"
    for content, named in [
        ('{"format": "mucd-certificate/\\u001b[2JVALID"}', "mucd-certificate/\\x1b[2JVALID"),
        ('{"format": "mucd-certificate/\\ud800"}', "\\ud800"),
        ('{"context": {"far": 1e400}}', "1e400 is too large"),
        ('{"a": 1, "a": "\\u001b[2J"}', "duplicate key"),
        ("[" * 100_000, "not JSON"),
        ("1" * 10_000, "not JSON"),
    ]:
        path.write_text(content)
        message = refusal(capfd, "verify", str(path))
        assert named in message and "\x1b" not in message
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)
    assert "at most 67,108,864 are read" in refusal(capfd, "verify", str(path))


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
def test_bad_input_is_one_line_and_exit_status_2(capfd, arguments, named):
    assert named in refusal(capfd, *arguments)


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["run", "x", "--out", "y", "--inference", "guess"], "guess"),
        (["run", "x", "--out", "y", "--rollouts", "2.5"], "2.5"),
        (["run", "x", "--out", "y", "--discount", "half"], "half"),
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


def test_bad_runs_are_refused_before_anything_is_written(capfd, recordings, tmp_path):
    out = tmp_path / "run"
    cartpole, acrobot = recordings["cartpole"], recordings["acrobot"]
    card = tmp_path / "card.json"
    from mucd_ray.data.environments.cards import card_for

    card.write_text(json.dumps(card_for("Acrobot-v1").to_dict()))
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps({**card_for("CartPole-v1").to_dict(), "reward_range": None}))
    np.save(tmp_path / "states.npy", np.zeros((4, 9)))
    np.save(tmp_path / "nan.npy", np.full((4, 4), np.nan))
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
        ([cartpole, "--actors", "0"], "--actors 0"),
        ([cartpole, "--units", "0"], "units 0"),
        ([cartpole, "--rollouts", "0"], "rollouts 0"),
        ([cartpole, "--discount", "0"], "discount 0.0"),
        ([cartpole, "--discount", "1.5"], "discount 1.5"),
        ([cartpole, "--discount", "0.9", "--card", str(bare)], "reward_range"),
        ([cartpole, "--until", "better"], "goal 'better'"),
        ([cartpole, "--until", "return>=2@0.01"], "goal 'return>=2@0.01'"),
        ([cartpole, "--until", "return>=0.5@0.9"], "fraction 0.9"),
        ([cartpole, "--until", "return>=0.5@0.01", "--instances", "500"], "certify at 400 or 630"),
        ([cartpole, "--until", "return>=0.5@0.01", "--instances", "50"], "certify at 100"),
        ([acrobot, "--address", "127.0.0.1:1"], "127.0.0.1:1"),
        ([acrobot, "--address", "a..b:6379"], "a..b:6379"),
    ]:
        message = refusal(capfd, "run", *arguments, "--out", str(out))
        assert named in message, (arguments, message)
        assert not (out / "blocks").exists() or "--address" in arguments


def test_help_shows_defaults_and_an_example_and_needs_no_heavy_import():
    for command in ("record", "run", "grow", "certify", "verify", "report", "plan", "tradeoff", "radius"):
        result = subprocess.run([sys.executable, "-X", "importtime", "-m", "mucd_ray.cli", command, "--help"], capture_output=True, text=True)
        assert result.returncode == 0 and f"example: mucd {command}" in " ".join(result.stdout.split())
        assert "default:" in result.stdout or command in ("verify", "report")
        assert "| torch" not in result.stderr and " ray\n" not in result.stderr


def test_help_tells_the_true_defaults(capsys):
    from mucd_ray.certify.planning.plan import BATCH, STEPS
    from mucd_ray.service.runs.session import DEFAULT_CLIP_NORM, DEFAULT_LEARNER

    with pytest.raises(SystemExit):
        build_parser().parse_args(["run", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "None" not in shown and DEFAULT_LEARNER.hidden == ()
    for text in (
        f"T (default: {STEPS})", f"C (default: {DEFAULT_CLIP_NORM})", f"a batch of about {BATCH}", f"--learning-rate LEARNING_RATE (default: {DEFAULT_LEARNER.learning_rate:g})",
        f"of sgd (default: {DEFAULT_LEARNER.momentum:g})", f"averaged (default: {DEFAULT_LEARNER.average})", f"(default: {DEFAULT_LEARNER.optimiser})",
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


@pytest.mark.slow
def test_a_terminated_run_says_so_in_one_line_and_continues(recordings, tmp_path):
    """SIGTERM once the first blocks are there; what is stored stays as it is, and the same command finishes the run."""
    blocks = tmp_path / "run" / "blocks"
    command = [sys.executable, "-m", "mucd_ray.cli", "run", recordings["cartpole"], "--out", str(blocks.parent), "--instances", "120", "--instances-per-actor", "2"]
    command += ["--states", "4", "--held-out", "2", "--actors", "1", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(blocks.glob("*")):
            time.sleep(0.05)
        process.terminate()
        out, err = process.communicate()
    lines = [line for line in err.splitlines() if line.startswith("mucd:")]
    assert process.returncode == 143 and lines == ["mucd: terminated; run the same command again to continue"], err
    assert out == "" and "Traceback" not in err
    stored = {path: path.read_bytes() for path in blocks.glob("*.safetensors")}
    assert 0 < len(stored) < 60
    finished = subprocess.run(command, capture_output=True, text=True)
    assert json.loads(finished.stdout)["instances"] == 120, finished.stderr
    assert {path: path.read_bytes() for path in stored} == stored


def test_sigterm_before_ray_is_connected():
    program = "import os, signal, sys; from mucd_ray import cli; cli.plan = lambda options, out: os.kill(os.getpid(), signal.SIGTERM)\n"
    program += "sys.exit(cli.main(['plan', '--units', '100', '--radius', '5']))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 143 and result.stderr == "mucd: terminated; run the same command again to continue\n"


def program(*arguments, shell=None, body="cli.main(sys.argv[1:])", **environment):
    """The command line in a process of its own, by a shell that redirects its streams."""
    code = f"import os, signal, sys\nfrom mucd_ray import cli\n{body}" if body.startswith("cli.plan") else f"import sys\nfrom mucd_ray import cli\nsys.exit({body})"
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {shell or ""}', "bash", sys.executable, "-c", code, *arguments], env=os.environ | environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "shell, status, out",
    [
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
        ("| python3 -c 'import os; os.close(0)'", 141, ""),
        ("2>&1 >/dev/full | cat", 2, "mucd: error: No space left on device"),
    ],
)
def test_standard_output_that_is_closed_or_broken_ends_quietly(shell, status, out):
    result = program("radius", *MECHANISM, "--top", "0.99", "--runner-up", "0.01", shell=shell)
    assert (result.returncode, result.stderr) == (status, "") and result.stdout.startswith(out) and result.stdout.count("\n") <= 1


def test_hangups_end_a_command_unless_they_are_ignored():
    body = "cli.plan = lambda options, out: (os.kill(os.getpid(), signal.SIGHUP), out('goes on'))[0]\nsys.exit(cli.main(['plan', '--units', '100', '--radius', '5']))"
    ended, ignored = program(body=body), program(body=body.replace("sys.exit", "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nsys.exit"))
    assert (ended.returncode, ended.stdout, ended.stderr) == (129, "", "mucd: the terminal hung up; run the same command again to continue\n")
    assert (ignored.returncode, ignored.stdout, ignored.stderr) == (0, "goes on\n", "")


def test_the_backend_of_a_notebook_breaks_nothing():
    for backend in ("module://matplotlib_inline.backend_of_a_notebook", "agg"):
        result = program("report", "nowhere", MPLBACKEND=backend)
        assert result.returncode == 2 and result.stderr.startswith("mucd: error: nowhere is not a run folder"), result.stderr


def test_a_tilde_in_an_option_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = build_parser().parse_args(["run", "some/data-v0", "--storage=~/x", "--card=~/card.json", "--tuned=~/t.json", "--states-file=~/s.npy"])
    assert [options.storage, options.card, options.tuned, options.states_file] == [str(tmp_path / name) for name in ("x", "card.json", "t.json", "s.npy")]
    assert build_parser().parse_args(["run", "some/data-v0", "--storage=s3://bucket/~/x"]).storage == "s3://bucket/~/x"
