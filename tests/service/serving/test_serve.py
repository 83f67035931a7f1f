"""A real Ray Serve over a real run: what comes back over HTTP is the certificate's, and bad input is refused."""

import contextlib
import html
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import uvicorn
from pydantic import TypeAdapter, ValidationError

from mucd_ray.certify.file.certificate import read_certificate
from mucd_ray.errors import MucdError
from mucd_ray.service.serving import serve
from mucd_ray.service.serving.ensemble import Ensemble
from mucd_ray.service.serving.pages import documentation
from mucd_ray.service.serving.serve import MOST_OBSERVATIONS, make_app, observation_type, serve_run

GOOD = [0.1, -0.2, 0.03, 0.4]


@pytest.fixture(scope="module")
def run(make_run, recordings, tmp_path_factory):
    return make_run(recordings["cartpole"], tmp_path_factory.mktemp("served"))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def call(url, body=None, kind="application/json"):
    """(status, JSON) of a GET, or of a POST of text."""
    request = urllib.request.Request(url, data=None if body is None else body.encode(), headers={"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.fixture(scope="module")
def url(run):
    """The HTTP interface on a real server in this process, without Ray."""
    ensemble = Ensemble(str(run.path))
    ensemble.warm_up()

    async def answers(observations):
        return ensemble.answers(observations)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "BODY_WITHIN", 3.0)
        app = make_app(ensemble, answers)
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.config.port}"
    server.should_exit = True
    thread.join()


def expected_answers(run):
    certificate = read_certificate(run.path / "certificate.json")
    action = certificate["results"]["action"]
    rows = zip(action["action"], action["per_state"]["radius"], certificate["inputs"]["actions"]["counts"], strict=True)
    return [{"action": a, "radius": radius, "votes": votes} for a, radius, votes in rows]


def check_answers(url, run):
    """The run's own states, in one request and one by one from two clients at once, get the certificate's numbers."""
    states, expected, wrong = run.states().tolist(), expected_answers(run), []
    status, found = call(f"{url}/act/batch", json.dumps({"observations": states}))
    assert status == 200 and found["answers"] == expected and any(answer["radius"] for answer in expected)
    assert "chosen without looking at anything these instances produced" in found["confidence"]

    def client(order):
        for row in order:
            answer = call(f"{url}/act", json.dumps({"observation": states[row]}))
            wrong.extend([answer] if answer != (200, expected[row] | {"confidence": found["confidence"]}) else [])

    clients = [threading.Thread(target=client, args=(order,)) for order in (range(12), range(11, -1, -1))]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert wrong == []


def test_answers_over_http_are_the_certificates(url, run):
    check_answers(url, run)
    certificate, about = read_certificate(run.path / "certificate.json"), call(f"{url}/about")[1]
    assert about["certificate"] == certificate["sha256"] and about["claim"] == certificate["claim"] and about["sound"] is True
    assert call(f"{url}/health") == (200, {"status": "ok", "instances": 40})


def test_openapi_tells_the_exact_shapes(url):
    schema = call(f"{url}/openapi.json")[1]
    assert set(schema["paths"]) == {"/act", "/act/batch", "/about", "/health"}
    observation = schema["components"]["schemas"]["Observation"]["properties"]["observation"]
    assert (observation["type"], observation["minItems"], observation["maxItems"], observation["items"]["type"]) == ("array", 4, 4, "number")
    assert set(schema["components"]["schemas"]["CertifiedAction"]["required"]) == {"action", "radius", "votes", "confidence"}


def test_bad_input_is_refused_with_its_place(url):
    one = lambda value: json.dumps({"observation": value})
    for path, body, place, words in [
        ("act", one(GOOD[:3]), ["observation"], "at least 4 items"),
        ("act", one([*GOOD, 1.0]), ["observation"], "at most 4 items"),
        ("act", one([*GOOD[:3], float("nan")]), ["observation", 3], "finite"),
        ("act", one(GOOD).replace("0.4", "1e400"), ["observation", 3], "finite"),
        ("act", one([*GOOD[:3], 1e39]), ["observation", 3], "less than or equal to 34028"),
        ("act", one([*GOOD[:3], "0.4"]), ["observation", 3], "valid number"),
        ("act", one([*GOOD[:3], True]), ["observation", 3], "valid number"),
        ("act", one([GOOD]), ["observation", 0], "valid number"),
        ("act", json.dumps({"observation": GOOD, "radius": 1}), ["radius"], "not permitted"),
        ("act", "{}", ["observation"], "required"),
        ("act", "{", [1], "JSON"),
        ("act/batch", '{"observations": []}', ["observations"], "at least 1 item"),
        ("act/batch", json.dumps({"observations": [GOOD] * (MOST_OBSERVATIONS + 1)}), ["observations"], "at most 256 items"),
    ]:
        status, found = call(f"{url}/{path}", body)
        assert status == 422 and any(["body", *place] == problem["loc"] and words in problem["msg"] for problem in found["detail"]), (body[:80], found)
    status, found = call(f"{url}/act/batch", json.dumps({"observations": [["x"] * 4] * 200}))
    assert status == 422 and len(found["detail"]) == 10
    assert call(f"{url}/act", "[" * 100_000)[0] == 400
    assert call(f"{url}/act", one(GOOD))[0] == 200


def test_a_wrong_header_or_address_is_named(url):
    """On a plain socket, since clients add headers of their own."""
    host, port = url.removeprefix("http://").split(":")

    def answer(*headers, path="/act", method="POST"):
        body = json.dumps({"observation": GOOD})
        head = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(body)}", *headers]
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(("\r\n".join(head) + "\r\n\r\n" + body).encode())
            told = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
        return int(told.split()[1]), json.loads(told.split("\r\n\r\n", 1)[1])

    assert answer() == (415, {"detail": "the header Content-Type is missing: send Content-Type: application/json"})
    assert answer("Content-Type: text/plain") == (415, {"detail": "the header Content-Type is 'text/plain': send Content-Type: application/json"})
    assert answer("Content-Type: text/" + "x" * 9000)[0] == 415
    for kind in ("application/json", "Application/JSON; charset=utf-8", "application/vnd.mine+json"):
        assert answer(f"Content-Type: {kind}")[0] == 200
    assert answer("Content-Type: application/json", path="/nowhere")[1] == {"detail": "there is nothing at this address: GET / lists what there is"}
    assert answer(method="GET") == (405, {"detail": "Method Not Allowed"})


def test_people_find_what_runs_here_and_how_it_is_asked(url, run):
    certificate = read_certificate(run.path / "certificate.json")
    status, found = call(f"{url}/")
    assert status == 200 and found["certificate"] == certificate["sha256"] and found["unit"] == "transitions"
    assert set(found["routes"]) == {"POST /act", "POST /act/batch", "GET /about", "GET /health", "GET /openapi.json", "GET /docs"}
    with urllib.request.urlopen(f"{url}/docs", timeout=60) as response:
        page, kind = response.read().decode(), response.headers["Content-Type"]
    assert kind.startswith("text/html") and certificate["sha256"] in page and "src=" not in page and "http://HOST:PORT/act" in page and "<script" not in page
    # The example is one that works.
    body = html.unescape(page.split("-d &#39;")[1].split("&#39;")[0] if "-d &#39;" in page else page.split("-d '")[1].split("'</pre>")[0])
    status, found = call(f"{url}/act", body)
    assert status == 200 and found["action"] == certificate["results"]["action"]["action"][0]


def test_a_page_escapes_what_a_file_says(run):
    ensemble = Ensemble(str(run.path))
    about = ensemble.about() | {"run": "<script>alert(1)</script>", "confidence": "{{ 7 * 7 }}"}
    page = documentation(about, seen="one image", state=np.zeros((84, 84)), most=9)
    assert "<script>" not in page and "{{ 7 * 7 }}" in page and "[84, 84]" in page and "[...]" in page and "up to 9 observations" in page


def test_large_and_odd_bodies_are_refused_as_they_come(url):
    host, port = url.removeprefix("http://").split(":")
    most = 65536 + MOST_OBSERVATIONS * 32 * 5

    def answer(headers, *parts):
        """Status of a request that is sent bit by bit, until the server answers."""
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n" + headers + b"\r\n")
            try:
                for part in parts:
                    connection.sendall(part)
            except OSError:
                pass
            try:
                return int(connection.recv(64).split()[1])
            except ConnectionResetError:
                return 413

    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    assert answer(b"Content-Length: 1000000000000\r\n") == 413
    assert answer(b"Content-Length: %d\r\n" % (most + 1)) == 413
    assert answer(b"Transfer-Encoding: chunked\r\n", *[chunk] * 8, b"0\r\n\r\n") == 413
    for body in ('{"observation": ' + "9" * 5000 + "}", '{"a": ' * 5_000, '{"observation": [1, 2, 3, 4], "observation": null}', "\ufeff{}", '"' + "\\ud800" * 9 + '"'):
        assert call(f"{url}/act", body)[0] in (400, 422), body[:60]
    # The largest honest request still passes.
    long = [-3.4028234663852886e38] * 4
    assert call(f"{url}/act/batch", json.dumps({"observations": [long] * MOST_OBSERVATIONS}, indent=1))[0] == 200
    assert call(f"{url}/act", json.dumps({"observation": GOOD}))[0] == 200


def test_a_body_that_never_comes_gives_its_place_back(url):
    host, port = url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((host, int(port)), timeout=30)) for _ in range(20)]
        for connection in slow:
            connection.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{")
        for connection in slow:
            assert connection.recv(64).split()[1] == b"408"
    assert call(f"{url}/act", json.dumps({"observation": GOOD}))[0] == 200


@pytest.mark.slow
def test_mucd_serve_from_start_to_sigterm(run):
    """The command itself, on a real Ray Serve of its own."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-m", "mucd_ray.cli", "serve", str(run.path), "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        ready = process.stdout.readline()
        assert f"serving {run.path} at {url}" in ready, process.communicate()
        with pytest.raises(MucdError, match="Address already in use.*choose another --port"):
            serve_run(str(run.path), host="127.0.0.1", port=port, replicas=1, address=None, out=print)
        check_answers(url, run)
        assert call(f"{url}/health")[0] == 200 and "/act" in call(f"{url}/openapi.json")[1]["paths"]
        assert call(f"{url}/act", "{}")[0] == 422
        # A request that is under way.
        slow = socket.create_connection(("127.0.0.1", port))
        slow.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0 and errors == ""
        # The address is free again.
        socket.create_server(("127.0.0.1", port)).close()
        slow.close()
    finally:
        process.kill()


def test_observations_have_the_environments_shape_and_type():
    frames = TypeAdapter(observation_type((2, 3), np.dtype(np.uint8)))
    assert frames.validate_python([[0, 1, 255]] * 2) == [[0, 1, 255]] * 2
    for wrong in ([[0, 1, 256]] * 2, [[0, 1, -1]] * 2, [[0, 1, 2.0]] * 2, [[0, 1, 2]] * 3, [0, 1, 2]):
        with pytest.raises(ValidationError):
            frames.validate_python(wrong)
    assert TypeAdapter(observation_type((1,), np.dtype(np.float64))).validate_python([1e300]) == [1e300]


def test_bad_requests_name_the_value_and_the_fix(local_ray, run, tmp_path):
    options = {"host": "127.0.0.1", "port": free_port(), "replicas": 1, "address": None, "out": print}
    for folder, changes, message in [
        (tmp_path, {}, "is not a run folder"),
        (run.path, {"replicas": 0}, "--replicas 0 must be at least 1"),
        (run.path, {"replicas": 64}, "64 replicas need a CPU each, there are 2"),
        (run.path, {"port": 70_000}, "cannot listen at 127.0.0.1:70000.*choose another --port"),
        (run.path, {"host": "ü" * 100}, "cannot listen at .*choose another --port or --host"),
        (run.path, {"host": "192.0.2.1"}, "cannot listen at 192.0.2.1.*choose another --port or --host"),
    ]:
        with pytest.raises(MucdError, match=message):
            serve_run(str(folder), **options | changes)


def test_without_the_extra_one_line_tells_how_to_install_it():
    code = "import sys; sys.modules['fastapi'] = None; from mucd_ray.cli import main; sys.exit(main(['serve', 'nowhere']))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "pip install 'mucd_ray[serve]'" in result.stderr
