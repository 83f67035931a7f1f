"""Latency and throughput of `mucd serve` on loopback, beside the bare function in the same run: `python benchmarks/serve.py RUN`.

A client asks again as soon as it has its answer. Half of the observations are the run's own states, half lie between two of them.
GET /health does nothing: it shows what Ray Serve's way through proxy and replica costs. Server, proxy and clients share this machine.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import aiohttp
import numpy as np

from mucd_ray.service.serving.ensemble import Ensemble

CLIENTS = (1, 4, 16, 64)


def observations(states: np.ndarray, count: int = 1000) -> np.ndarray:
    rng = np.random.default_rng(0)
    first, second = states[rng.integers(len(states), size=(2, count))].astype(float)
    weight = (rng.random(count) * (rng.random(count) < 0.5)).reshape(-1, *[1] * (states.ndim - 1))
    mixed = (1 - weight) * first + weight * second
    return (np.rint(mixed) if states.dtype.kind in "iu" else mixed).astype(states.dtype)


def row(name: str, seconds: list[float], answered: int, elapsed: float) -> str:
    p50, p95, p99 = 1e3 * np.percentile(seconds, [50, 95, 99])
    return f"{name:>32} {p50:9.2f} {p95:9.2f} {p99:9.2f} {answered / elapsed:12.0f}"


def bare(ensemble: Ensemble, asked: np.ndarray, batch: int, duration: float) -> str:
    seconds, start, place = [], time.perf_counter(), 0
    while time.perf_counter() - start < duration:
        rows, begin = np.arange(place, place + batch) % len(asked), time.perf_counter()
        ensemble.answers(asked[rows])
        seconds.append(time.perf_counter() - begin)
        place += batch
    return row(f"in process, batches of {batch}", seconds, place, time.perf_counter() - start)


async def load(url: str, name: str, clients: int, duration: float, path: str, bodies: list[bytes | None], observations: int = 1) -> str:
    """One line of the table: `clients` ask for `path`, with one of `bodies` (None: GET) that holds so many observations."""
    seconds, end = [], time.perf_counter() + duration

    async def client(session, number):
        place = 97 * number
        while time.perf_counter() < end:
            begin = time.perf_counter()
            body = bodies[place % len(bodies)]
            async with session.request("POST" if body else "GET", f"{url}/{path}", data=body, headers={"Content-Type": "application/json"}) as response:
                assert response.status == 200, await response.text()
                await response.read()
            seconds.append(time.perf_counter() - begin)
            place += 1

    start = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session, number) for number in range(clients)))
    return row(f"{name}, {clients} clients", seconds, len(seconds) * observations, time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", default="runs/acrobot")
    parser.add_argument("--seconds", type=float, default=5.0, help="per line of the table")
    parser.add_argument("--replicas", type=int, default=1)
    options = parser.parse_args()
    ensemble, begin = Ensemble(options.run), time.perf_counter()
    ensemble.warm_up()
    asked = observations(ensemble.states)
    layers = "-".join(str(width) for width in (ensemble.settings.problem.network.inputs, *(out for _, out in ensemble.settings.problem.network.layers)))
    print(f"{ensemble.settings.card.env_id}: {ensemble.instances} policies {layers}, {ensemble.kind}; table of {len(ensemble._guarantees.radii)} radii in {time.perf_counter() - begin:.1f} s")
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before\n{'':>32} {'p50 ms':>9} {'p95 ms':>9} {'p99 ms':>9} {'answers/s':>12}")
    for batch in CLIENTS:
        print(bare(ensemble, asked, batch, options.seconds))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "mucd_ray.cli", "serve", options.run, "--port", str(port), "--replicas", str(options.replicas)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        if not server.stdout.readline():
            sys.exit("the server did not start")
        url, many = f"http://127.0.0.1:{port}", 64
        one = [json.dumps({"observation": observation}).encode() for observation in asked.tolist()]
        batches = [json.dumps({"observations": asked[start : start + many].tolist()}).encode() for start in range(0, len(asked) - many, many)]
        asyncio.run(load(url, "warm-up", 4, 2.0, "act", one))
        for clients in CLIENTS:
            print(asyncio.run(load(url, "POST /act", clients, options.seconds, "act", one)), flush=True)
        for clients in (1, 4):
            print(asyncio.run(load(url, f"POST /act/batch of {many}", clients, options.seconds, "act/batch", batches, many)), flush=True)
        for clients in (1, 16):
            print(asyncio.run(load(url, "GET /health", clients, options.seconds, "health", [None])), flush=True)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


if __name__ == "__main__":
    main()
