"""What is said of progress: on a terminal as it goes, in a pipe next to nothing."""

import os
import subprocess
import sys
import termios

import pytest

COUNTS = """
import sys
from mucd_ray.progress import counting, stage
with counting("recording", "transition") as progress:
    for done in range(1000):
        progress(done, 1000)
try:
    with stage("states"):
        raise KeyError
except KeyError:
    print("mucd: it failed", file=sys.stderr)
with stage("certificate"):
    pass
"""


def on_terminal(*command: str) -> str:
    """What a command prints on standard error, which is a pseudo-terminal."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (40, 100))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            said += part
        os.close(ours)
    assert process.returncode == 0, said
    return said.decode()


def test_a_stage_is_a_line_on_a_terminal_and_nothing_in_a_pipe():
    said = on_terminal(sys.executable, "-c", COUNTS)
    assert "states ...\r" in said and "certificate ...\rcertificate: 0.0 s\r\n" in said and "states: " not in said and "mucd: it failed\r\n" in said
    piped = subprocess.run([sys.executable, "-c", COUNTS], capture_output=True, text=True)
    # Of a bar its beginning and its end.
    assert "certificate" not in piped.stderr and piped.stdout == "" and piped.stderr.count("\r") <= 2 and piped.stderr.endswith("\nmucd: it failed\n")


@pytest.mark.slow
def test_a_run_tells_its_stages(recordings, tmp_path):
    run = [sys.executable, "-m", "mucd_ray.cli", "run", recordings["cartpole"], "--storage", str(tmp_path / "run"), "--instances", "12", "--states", "4", "--held-out", "1", "--policy", "vote", "--episodes", "2", "--unit", "transition"]
    said = on_terminal(*run)
    lines = [line.rsplit("\r", 1)[-1] for line in said.replace("\r\n", "\n").strip().split("\n")]
    told = [line.split(":")[0] for line in lines if not line.startswith("mucd:")]
    assert told[0] == "states" and told[1] == "training" and told[-3:] == ["certificate", "voted policy", "report"], said
    assert "Traceback" not in said and "Ray" not in said
