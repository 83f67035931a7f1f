"""`mucd serve`: the certified ensemble behind HTTP, as a Ray Serve deployment (extra `serve`).

POST /act takes one observation, POST /act/batch a list; GET / tells what is here, GET /docs how it is asked, on a page for people, GET /about what is claimed, GET /health
whether it is served, GET /openapi.json the exact shapes. Requests that wait are answered in one batch.
"""

import asyncio
import contextlib
import io
import logging
import math
import os
import signal
import socket
import time
from typing import Annotated, Any, Literal

import numpy as np
import ray

from mucd_ray.data.environments.card import EnvironmentCard
from mucd_ray.data.environments.features import may_see
from mucd_ray.errors import MucdError
from mucd_ray.learn.encoders import encoder_hash
from mucd_ray.service.runs.commands import check_encoder
from mucd_ray.service.serving.ensemble import Ensemble
from mucd_ray.service.serving.pages import ROUTES, documentation
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.workers.actors import NO_GPU
from mucd_ray.service.workers.cluster import Resources, joined

try:
    from fastapi import FastAPI, HTTPException
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse
    from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, Strict, create_model
    from ray import serve
except ImportError as error:
    raise MucdError(f"{error.name or 'ray[serve]'} is missing: `mucd serve` needs an extra, pip install 'mucd_ray[serve]'") from None

APPLICATION = "mucd"
# Observations of one request, and of one batch.
MOST_OBSERVATIONS = 256
SMALL_BATCH = 16
# Requests that a replica holds: those beyond wait in Serve.
MOST_WAITING = 256
# Bytes of one number in JSON with what stands around it, and of everything else in a request.
BYTES_OF_A_NUMBER, BYTES_OF_A_REQUEST = 32, 1 << 16
# Seconds in which a body must be there: until then its request holds one of the places of a replica.
BODY_WITHIN = 20.0
# Errors told of one bad request.
MOST_ERRORS = 10


@serve.deployment(name="Policy", max_ongoing_requests=MOST_WAITING, logging_config={"enable_access_log": False})
@serve.ingress()
class Policy:
    """One replica: all instances, and all accounting, in memory."""

    def __init__(self, run: str, encoder: str | None, features: str | None):
        self.ensemble = Ensemble(run, encoder, features)
        self.ensemble.warm_up()

    # Nobody waits for a batch to fill: what arrives while one is being answered makes the next one.
    @serve.batch(max_batch_size=MOST_OBSERVATIONS, batch_wait_timeout_s=0.0, batch_size_fn=lambda parts: sum(map(len, parts)))
    async def answers(self, parts: list[np.ndarray]) -> list[list[dict]]:
        together = np.concatenate(parts)
        # Meanwhile a large batch lets others in; for a small one the way to another thread takes longer than the answer.
        answers = self.ensemble.answers(together) if len(together) <= SMALL_BATCH else await asyncio.to_thread(self.ensemble.answers, together)
        ends = np.cumsum([len(part) for part in parts]).tolist()
        return [answers[end - len(part) : end] for part, end in zip(parts, ends, strict=True)]

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self.ensemble, self.answers)


def make_app(ensemble: Ensemble, answers) -> FastAPI:
    """The HTTP interface of one ensemble; `answers`: coroutine from observations [S, *shape] to S answers."""
    about, confidence = ensemble.about(), ensemble.confidence
    joined, dtype = ensemble.settings.environment_observations, ensemble.states.dtype
    observation = observation_type(ensemble.settings.card.observation_shape, dtype)
    if joined is not None:
        # `row` looks at what is in it.
        observation = observation | dict[str, Any]
    strict = ConfigDict(extra="forbid")
    seen = what_is_seen(ensemble.settings.card)
    if joined is not None:
        seen += f", as a dictionary of its keys, or joined in this order, whole numbers of categories one-hot: {'; '.join(joined.words)}"
    One = create_model("Observation", __config__=strict, observation=(observation, Field(description=seen)))
    many = Annotated[list[observation], Field(min_length=1, max_length=MOST_OBSERVATIONS)]
    Many = create_model("Observations", __config__=strict, observations=(many, Field(description="raw observations")))
    Answer: Any = (ANSWERS_OF_COMPONENTS if ensemble.components else ANSWERS)[ensemble.kind]
    if ensemble.settings.environment_actions is not None:
        Answer = create_model(Answer.__name__, __base__=Answer, environment_action=(list, Field(description="the action as the environment takes it")))
    told = (str, Field(description="for which states the radius holds, and with which probability"))
    OneAnswer = create_model("CertifiedAction", __base__=Answer, confidence=told)
    ManyAnswers = create_model("CertifiedActions", answers=(list[Answer], ...), confidence=told)
    page = documentation(about, seen=seen, state=ensemble.states[0], most=MOST_OBSERVATIONS)
    # FastAPI's own pages of documentation would load scripts from elsewhere.
    app = FastAPI(title="mucd_ray", version="1", description=" ".join([*about["claim"], confidence]), docs_url=None, redoc_url=None)

    app.add_middleware(OnlyJson)
    app.add_middleware(BodyLimit, most=BYTES_OF_A_REQUEST + MOST_OBSERVATIONS * BYTES_OF_A_NUMBER * (math.prod(ensemble.settings.card.observation_shape) + 1), within=BODY_WITHIN)

    def row(value) -> np.ndarray:
        """One observation that has passed as what it says, as an array."""
        if joined is not None and isinstance(value, dict):
            try:
                value = joined.one(value)
            except MucdError as error:
                raise HTTPException(422, str(error)) from None
            if not np.isfinite(value).all():
                raise HTTPException(422, "an observation holds finite numbers only")
        return np.array(value, dtype)

    @app.exception_handler(RequestValidationError)
    async def refuse(request, error: RequestValidationError) -> JSONResponse:
        """Without the input itself, which may be long, or NaN."""
        found = [{key: problem[key] for key in ("loc", "msg", "type")} for problem in error.errors()[:MOST_ERRORS]]
        return JSONResponse({"detail": found}, status_code=422)

    @app.exception_handler(404)
    async def nothing_there(request, error) -> JSONResponse:
        return JSONResponse({"detail": "there is nothing at this address: GET / lists what there is"}, status_code=404)

    @app.get("/", include_in_schema=False)
    async def welcome():
        routes = {f"{method} {path}": what.format(most=MOST_OBSERVATIONS) for method, path, what in ROUTES}
        return {name: about[name] for name in ("run", "environment", "instances", "unit", "threat", "sound", "certificate")} | {"routes": routes}

    @app.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    async def tell_people():
        return page

    @app.post("/act", response_model=OneAnswer, summary="The ensemble's action at one observation, and its certified radius")
    async def act(body: One):
        (answer,) = await answers(row(body.observation)[None])
        return answer | {"confidence": confidence}

    @app.post("/act/batch", response_model=ManyAnswers, summary=f"The same for 1 to {MOST_OBSERVATIONS} observations, in their order")
    async def act_batch(body: Many):
        return {"answers": await answers(np.stack([row(value) for value in body.observations])), "confidence": confidence}

    @app.get("/about", response_model=About, summary="What is served: the certificate's claim and assumptions")
    async def tell():
        return about

    @app.get("/health", response_model=Health, summary="Whether actions are served")
    async def health():
        return {"status": "ok", "instances": ensemble.instances}

    return app


def what_is_seen(card: EnvironmentCard) -> str:
    """What a client sends as one observation."""
    if card.recalled:
        return (
            f"the last {card.history} steps of the episode, oldest first; each is 1, the sum of the rewards before it, the action before it ({card.recalled[0]} numbers: one for each discrete action, 1 for the one "
            "taken; all 0 at the first step) and the flattened raw observation; a step that the episode has not had yet is all zeros"
        )
    if card.history > 1:
        return f"the last {card.history} raw observations of the episode, oldest first; at its beginning the first one stands for those that are missing"
    return "one raw observation of the environment"


class OnlyJson:
    """Refuses bodies whose header does not say that they are JSON, by the name of that header."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        given = dict(scope.get("headers", [])).get(b"content-type")
        kind = (given or b"").split(b";")[0].strip().lower()
        if scope.get("method") != "POST" or kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json")):
            await self.app(scope, receive, send)
            return
        found = "is missing" if given is None else f"is {given[:100].decode('latin-1')!r}"
        await JSONResponse({"detail": f"the header Content-Type {found}: send Content-Type: application/json"}, status_code=415)(scope, receive, send)


class BodyLimit:
    """Refuses bodies of more than `most` bytes: by what they declare, and else as soon as they have become so long; and those that are not there `within` so many seconds."""

    def __init__(self, app, most: int, within: float):
        self.app, self.most, self.within = app, most, within

    async def __call__(self, scope, receive, send) -> None:
        declared = dict(scope.get("headers", [])).get(b"content-length", b"0")
        if not declared.isdigit() or len(declared) > 20 or int(declared) > self.most:
            await JSONResponse({"detail": f"a body has at most {self.most} bytes"}, status_code=413)(scope, receive, send)
            return
        left, until = self.most, asyncio.get_running_loop().time() + self.within

        async def limited():
            nonlocal left, until
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"a body must be there within {self.within:g} seconds", {"Connection": "close"}) from None
            if not message.get("more_body"):
                # What is still awaited is that the client hangs up.
                until = None
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, f"a body has at most {self.most} bytes")
            return message

        await self.app(scope, limited, send)


def observation_type(shape: tuple[int, ...], dtype: np.dtype):
    """The type of one observation in JSON: nested lists of exactly this shape, of finite numbers that `dtype` can hold."""
    kind: Any
    if dtype.kind in "iu":
        kind = Annotated[int, Strict(), Field(ge=int(np.iinfo(dtype).min), le=int(np.iinfo(dtype).max))]
    elif dtype.kind == "b":
        kind = Annotated[bool, Strict()]
    else:
        kind = Annotated[float, Strict(), AllowInfNan(False), Field(ge=float(np.finfo(dtype).min), le=float(np.finfo(dtype).max))]
    for length in reversed(shape):
        kind = Annotated[list[kind], Field(min_length=length, max_length=length)]
    return kind


RADIUS = Field(description="number of changed units up to which this is certified; null where not even 0 is")


class VotedAction(BaseModel):
    action: int = Field(description="the action with most votes, as the environment numbers it")
    radius: int | None = RADIUS
    votes: list[int] = Field(description="number of instances that choose each action")


class ScoredAction(BaseModel):
    action: int = Field(description="the action with the largest mean score, as the environment numbers it")
    radius: int | None = RADIUS
    scores: list[float] = Field(description="mean probability that the instances give each action, in steps of 1/200 downwards")


class VotedComponents(BaseModel):
    action: list[int] = Field(description="of each component the value with most votes, counted from 0")
    radius: int | None = RADIUS
    votes: list[list[int]] = Field(description="for each component the number of instances that choose each of its values")


class ScoredComponents(BaseModel):
    action: list[int] = Field(description="of each component the value with the largest mean score, counted from 0")
    radius: int | None = RADIUS
    scores: list[list[float]] = Field(description="for each component the mean probability that the instances give each of its values, in steps of 1/200 downwards")


class MedianInterval(BaseModel):
    tolerance: float = Field(description="half the width of the interval in which the action stays, as a share of the action range")
    radius: int | None = RADIUS
    low: list[float] | None = Field(description="the median action under any D' within the radius is at least this, per dimension")
    high: list[float] | None = Field(description="and at most this")


class MedianAction(BaseModel):
    action: list[float] = Field(description="the median action, per dimension")
    tolerances: list[MedianInterval]


ANSWERS = {"votes": VotedAction, "exact": VotedAction, "scores": ScoredAction, "continuous": MedianAction}
# Of actions of several components.
ANSWERS_OF_COMPONENTS = {"votes": VotedComponents, "exact": VotedComponents, "scores": ScoredComponents}


class About(BaseModel):
    run: str = Field(description="dataset on which the instances were trained")
    environment: str
    instances: int
    kind: Literal["votes", "exact", "scores", "continuous"]
    threat: str
    unit: str = Field(description="what is counted by a radius")
    accountant: str
    sound: bool
    eta: float
    certificate: str = Field(description="sha256 of the certificate")
    claim: list[str]
    assumptions: list[str]
    confidence: str


class Health(BaseModel):
    status: Literal["ok"]
    instances: int


def serve_run(run: str, *, encoder: str | None = None, features: str | None = None, host: str, port: int, replicas: int, address: str | None, out) -> None:
    """Serve the certified ensemble of a run folder until SIGINT, SIGTERM or SIGHUP; `out` gets one line when it is ready.

    Raises:
        MucdError: nothing to serve, a port that is taken, too few CPUs, or a cluster that already serves something.
    """
    if replicas < 1:
        raise MucdError(f"--replicas {replicas} must be at least 1")
    card = RunStore.open(run).settings().card
    vouched = None if may_see(run, card, features) or card.encoder is None else encoder_hash(check_encoder(run, card, encoder))
    Ensemble(run, vouched, features)
    _check_port(host, port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with contextlib.ExitStack() as quiet, joined(Resources(address=address)):
        _check_cluster(replicas)
        # Only now: Ray has its own.
        _on_signals(signal.default_int_handler)
        try:
            _deploy(run, vouched, features, host, port, replicas)
            out(f"serving {run} at http://{host}:{port} (POST /act, /act/batch; GET /, /docs, /about, /health, /openapi.json); Ctrl-C stops it")
            _wait()
        finally:
            # A second one must not leave processes behind.
            _on_signals(signal.SIG_IGN)
            # Where Ray prints that calls of Serve's own end with its processes.
            quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
            serve.shutdown()


def _on_signals(handler) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # One that is ignored stays so (`nohup`).
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _wait() -> None:
    """Until one of these signals."""
    try:
        while APPLICATION in serve.status().applications:
            time.sleep(5.0)
    except KeyboardInterrupt:
        return
    raise MucdError("the deployment was deleted from outside: start it again with the same command")


def _deploy(run: str, encoder: str | None, features: str | None, host: str, port: int, replicas: int) -> None:
    options = {"num_cpus": 1, "num_gpus": 0, "runtime_env": NO_GPU}
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
        serve.run(Policy.options(num_replicas=replicas, ray_actor_options=options).bind(RunStore.open(run).storage.absolute, encoder, features), name=APPLICATION, route_prefix="/")
    except Exception as error:  # Ray raises bare ones, too
        raise MucdError(f"the deployment did not start ({' '.join(str(error).split())[-500:]})") from None


def _check_port(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError, TypeError, ValueError) as error:  # a host that is no name fails in its encoding
        raise MucdError(f"cannot listen at {host}:{port} ({os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error}): choose another --port or --host") from None


def _check_cluster(replicas: int) -> None:
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if replicas > cpus:
        raise MucdError(f"{replicas} replicas need a CPU each, there are {cpus}: use fewer --replicas")
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return
    raise MucdError("this cluster already serves something, at an address that cannot be changed: stop it (`serve shutdown`), or leave --address out for a Ray of its own")
