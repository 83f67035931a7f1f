"""Commands as processes: signals, and standard streams that are closed, broken or full."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MECHANISM = ["--sample-rate", "0.002", "--noise-multiplier", "3", "--steps", "1000"]


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
    lines = [line for line in err.splitlines() if line.startswith("mucd:")]  # the first says up to which radius the rounded size is the same
    assert process.returncode == 143 and lines[-1] == "mucd: terminated; run the same command again to continue" and len(lines) == 2, err
    assert out == "" and "Traceback" not in err
    stored = {path: path.read_bytes() for path in blocks.glob("*.safetensors")}
    assert 0 < len(stored) < 60
    finished = subprocess.run(command, capture_output=True, text=True)
    assert json.loads(finished.stdout)["instances"] == 120, finished.stderr
    assert {path: path.read_bytes() for path in stored} == stored


def test_sigterm_before_ray_is_connected():
    program = "import os, signal, sys; from mucd_ray import cli; cli.calculating.plan = lambda options, out: os.kill(os.getpid(), signal.SIGTERM)\n"
    program += "sys.exit(cli.main(['plan', '--units', '100', '--radius', '5']))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 143 and result.stderr == "mucd: terminated; run the same command again to continue\n"


STARTS_RAY = """
import os, sys, time
from pathlib import Path
from mucd_ray import cli
from mucd_ray.service.workers.cluster import Resources, joined

def command(options, out):
    with joined(Resources()):
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        blocked = [line for child in children for line in Path(f"/proc/{child}/status").read_text().splitlines() if line.startswith("SigBlk")]
        out(f"{len(children)} {any(int(line.split()[1], 16) >> 14 & 1 for line in blocked)}")
        time.sleep(float(os.environ["STAYS"]))

cli.calculating.plan = command
sys.exit(cli.main(["plan", "--units", "10"]))
"""


def started(stays: float) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", STARTS_RAY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"STAYS": str(stays)})


def threads_of(process) -> set[str]:
    names = set()
    for task in Path(f"/proc/{process.pid}/task").glob("*/comm"):
        with contextlib.suppress(OSError):
            names.add(task.read_text().strip())
    return names


def assert_ended_quietly(process) -> None:
    out, err = process.communicate()
    assert process.returncode == 143 and err.splitlines()[-1] == "mucd: terminated; run the same command again to continue", (process.returncode, err)
    assert not any(word in err for word in ("Traceback", "SIGTERM received", "Fatal")), err


def test_sigterm_while_ray_connects_ends_as_quietly_as_ever():
    """At the moment at which Ray's core is there with its own handlers, and `ray.init` has not returned."""
    with started(0) as process:
        while process.poll() is None and not threads_of(process) & {"worker.io", "client.poll0"}:
            time.sleep(0.0005)
        process.terminate()
        assert_ended_quietly(process)


@pytest.mark.slow
def test_sigterm_at_any_moment_of_a_start_ends_quietly():
    """From the first thread that Ray starts to the end of the command; and Ray's processes do not block SIGTERM."""
    began = time.monotonic()
    with started(0) as process:
        out, err = process.communicate()
    took = time.monotonic() - began
    assert process.returncode == 0 and int(out.split()[0]) >= 2 and out.split()[1] == "False", (out, err)
    for moment in range(1, 10):
        with started(1000) as process:
            while process.poll() is None and len(threads_of(process)) == 1 and not Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text():
                time.sleep(0.001)
            time.sleep(took * moment / 10)
            process.terminate()
            assert_ended_quietly(process)


def program(*arguments, shell=None, body="cli.main(sys.argv[1:])", **environment):
    """The command line in a process of its own, by a shell that redirects its streams. With signals as in a terminal: what runs these tests may ignore some."""
    code = f"import os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\nfrom mucd_ray import cli\n{body}" if body.startswith("cli.calculating.plan") else f"import sys\nfrom mucd_ray import cli\nsys.exit({body})"
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
    body = "cli.calculating.plan = lambda options, out: (os.kill(os.getpid(), signal.SIGHUP), out('goes on'))[0]\nsys.exit(cli.main(['plan', '--units', '100', '--radius', '5']))"
    ended, ignored = program(body=body), program(body=body.replace("sys.exit", "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nsys.exit"))
    assert (ended.returncode, ended.stdout, ended.stderr) == (129, "", "mucd: the terminal hung up; run the same command again to continue\n")
    assert (ignored.returncode, ignored.stdout, ignored.stderr) == (0, "goes on\n", "")


@pytest.mark.parametrize("sent, status, words", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_a_signal_whose_exception_python_cannot_pass_on_ends_a_command_all_the_same(sent, status, words):
    """What is raised in a destructor, or while a library of C calls back, is lost."""
    body = (
        "cli.calculating.plan = None\nimport time\nclass Closing:\n    def __del__(self):\n        signal.raise_signal(int(sys.argv.pop()))\n"
        "cli.calculating.plan = lambda options, out: (Closing() and None, time.sleep(60), out('goes on'))\nsys.exit(cli.main(['plan', '--units', '100', '--radius', '5']))"
    )
    ended = program(str(int(sent)), body=body)
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "", f"mucd: {words}; run the same command again to continue\n")


def test_a_working_folder_that_was_removed_is_one_line(tmp_path):
    (tmp_path / "gone").mkdir()
    command = "import os, sys\nos.chdir(sys.argv[1])\nos.rmdir(sys.argv[1])\nfrom mucd_ray import cli\nsys.exit(cli.main(['compare', 'run']))"
    result = subprocess.run([sys.executable, "-c", command, str(tmp_path / "gone")], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("mucd: error: the working folder cannot be found") and result.stderr.count("\n") == 1


def test_arguments_that_are_no_text_are_one_line_and_long_ones_are_cut(tmp_path):
    for arguments, words in ((["grow", os.fsencode(tmp_path) + b"/\xff"], "udcff on the command line is no text in UTF-8: rename"), (["verify", "a" * 30_000], "[...]")):
        ended = subprocess.run([sys.executable, "-m", "mucd_ray.cli", *arguments], capture_output=True, text=True)
        assert ended.returncode == 2 and words in ended.stderr and ended.stderr.count("\n") == 1 and len(ended.stderr) < 2_100
    assert not os.listdir(tmp_path)


def test_progress_bars_that_the_environment_breaks_are_one_line():
    result = program("compare", "nowhere", TQDM_POSITION="abc")
    assert result.returncode == 2 and result.stderr.startswith("mucd: error: TQDM_POSITION in the environment") and result.stderr.count("\n") == 1


def test_the_backend_of_a_notebook_breaks_nothing():
    for backend in ("module://matplotlib_inline.backend_of_a_notebook", "agg"):
        result = program("report", "nowhere", MPLBACKEND=backend)
        assert result.returncode == 2 and result.stderr.startswith("mucd: error: nowhere is not a run folder"), result.stderr
