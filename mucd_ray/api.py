"""The Python API: four verbs, re-exported by the package. They do what the commands do, and raise `MucdError` for what they refuse.

    import mucd_ray

    summary = mucd_ray.run("cartpole/mine-v0", mechanism="bag", bag_size=10, instances=300, storage="runs/mine")
    policy = mucd_ray.load("runs/mine")
    policy.act(observations), policy.radius(observations)
    certificate = mucd_ray.certify(votes=votes, returns=returns, return_range=(0, 500), mechanism=Bag(unit="trajectory", bag_size=10), units=1000)
    assert mucd_ray.verify(certificate) == []
"""

import contextlib
import inspect
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mucd_ray.certify.file.certificate import make_certificate, make_inputs, parse_certificate, read_certificate
from mucd_ray.certify.file.certificate import verify as mismatches
from mucd_ray.certify.file.evidence import exact_evidence, votes_evidence
from mucd_ray.errors import MucdError
from mucd_ray.files import LARGEST_WHOLE, printable, quoted, write_file
from mucd_ray.mechanism.kinds import AnyMechanism, from_values
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.partition import Partition

if TYPE_CHECKING:
    from mucd_ray.data.environments.cards import EnvironmentCard
    from mucd_ray.service.serving.ensemble import Ensemble

Text = TypeVar("Text", bound=str | None)
ELSEWHERE = (
    "Votes and returns were made elsewhere, without this package: each instance by a learner that is as the mechanism says, from its own secret randomness, independently of the others; none was dropped, "
    "made again, or chosen among several."
)
PARTS_ELSEWHERE = (
    "Votes and returns were made elsewhere, without this package. Units went to parts by the stated hash, which was fixed without looking at the data and is of a unit's content alone. Each part's policy follows "
    "from the units of that part alone, deterministically: training it again gives the same policy, in whatever order they come and whatever the other parts hold. Votes are those of the policies of all parts; "
    "returns are those of parts drawn at random with equal chances, each independently of the others and with secret randomness. None was dropped, made again, or chosen among several."
)


def run(dataset: str, *, storage: str, trainer: Callable | str | None = None, environment: "EnvironmentCard | str | None" = None, imports: str | tuple[str, ...] = (), **options) -> dict:
    """Train an ensemble on a dataset, certify it and write a run folder: `mucd run`, whose options are the keyword arguments.

    Args:
        dataset: Minari id.
        storage: run folder; an unfinished run there is continued.
        trainer: a learner's or plug-in's name (docs/algorithms.md, docs/plugins.md), "package.module:function", "path/to/file.py:function", or a function at the top of a file.
        environment: the environment's public facts, as a card, the path of its JSON file, or the name of a plug-in; by default the shipped card of the environment that the dataset names.
        imports: modules that register the environment, imported by every process that makes it: --import. With return_range=(lo, hi) no card is needed.
        options: of `mucd run --help`, with _ in the place of -, such as mechanism="bag", bag_size=10, instances=300; `constant={"alpha": 2.0}`, `mirrored=False`.

    Returns:
        The summary that `mucd run --json` prints.

    Raises:
        MucdError: whatever the command refuses.
    """
    from mucd_ray.service.runs.commands import start_run

    with contextlib.ExitStack() as stack:
        if trainer is not None:
            options["trainer"] = _name_of(trainer) if callable(trainer) else trainer
        if not isinstance(dataset, str) or dataset.startswith("-") or not isinstance(imports, (str, tuple, list)):
            raise MucdError(f"dataset {quoted(dataset)} must be the id of one, and imports {quoted(imports)} the names of modules")
        if environment is not None:
            options["card"] = environment if isinstance(environment, (str, Path)) else _written(environment, stack)
        named = [f"--import={name}" for name in ([imports] if isinstance(imports, str) else imports)]
        return _called(start_run, ["run", dataset, *named], {"storage": storage} | options)


def load(run: str, *, encoder: str | None = None, features: str | None = None) -> "Ensemble":
    """The certified ensemble of a run folder as one policy: `act(observations)`, `radius(observations)`, and `answers(observations)` for both with votes.

    Args:
        run: run folder, a local path or an fsspec URL, with its certificate.
        encoder: SHA-256 of the encoder that you vouch for, where the run has one.
        features: name of the plug-in whose features its policies see, where that is so: it is imported.

    Raises:
        MucdError: no certificate of actions there, or instances that are not those of the certificate.
    """
    from mucd_ray.service.serving.ensemble import Ensemble

    with _files_named():
        return Ensemble(_path("run", run), _text("encoder", encoder), _text("features", features))


def certify(
    *,
    mechanism: AnyMechanism | dict,
    units: int,
    returns: np.ndarray | None = None,
    return_range: tuple[float, float] | None = None,
    votes: np.ndarray | None = None,
    components: tuple[int, ...] = (),
    reference: np.ndarray | None = None,
    eta: float = 0.001,
    threat: str = "symmetric",
    accountant: str = "tradeoff",
    band: str = "order-statistic",
    rollouts: int = 1,
    discount: float = 1.0,
    clipped: bool = False,
    assumptions: tuple[str, ...] = (),
    out: str | None = None,
) -> dict:
    """A certificate of votes and returns that were made elsewhere.

    It is worth what your training is: P instances, each by a randomised learner that is as the mechanism says; of a partition policies that follow deterministically, each from its own part alone. What voids it
    is in docs/soundness.md.

    Args:
        mechanism: such as `Bag(unit="trajectory", bag_size=10)` (mucd_ray.mechanism), or its fields as a dict with the `kind`.
        units: N, how many units the dataset has.
        returns: what each instance earned, in any order (in the certificate it is drawn anew), [P], of a partition P parts drawn at random, again and again from all of them; None: actions alone are certified.
        return_range: public (least, greatest) return.
        votes: at S public states how many of the P instances prefer each of A actions, [S, A]; of a partition those of all its parts.
        components: of actions of several whole numbers, each voted on by itself, how many values each of them may have: then `votes` [S, n_1 + ... + n_k] holds those for the values of the first, then of the
            second, and so on, and a radius is that of all values together.
        reference: [S], or [S, k] of components: the actions against which certified accuracy is counted.
        eta, threat, accountant, band: as of `mucd certify`.
        rollouts, discount, clipped: episodes whose mean one return is; discount of a step; whether every episode's return was clipped into `return_range`.
        assumptions: sentences of yours for the certificate.
        out: folder for certificate.json, report.html and plots; it must not have a certificate.

    Returns:
        The certificate, plain JSON values, as docs/certificate.md lists them.

    Raises:
        MucdError: evidence that does not fit together, or values outside their range.
    """
    mechanism = mechanism if isinstance(mechanism, AnyMechanism) else from_values(mechanism)
    _check_statements(units, None if returns is None else return_range, threat, accountant, band, rollouts, discount, clipped, assumptions)
    if returns is None and votes is None:
        raise MucdError("there are neither votes nor returns: give at least one of them")
    if returns is not None and return_range is None:
        raise MucdError("return_range None must be two numbers, (least, greatest)")
    if out is not None:
        _check_new(out)
    if isinstance(mechanism, Neighbours):
        raise MucdError("the votes of neighbours are certified with the radii along episodes, which `mucd run --mechanism neighbours` finds: votes and returns alone do not do")
    evidence = None
    if votes is not None:
        if not isinstance(components, (tuple, list)) or not all(_is_whole(values) for values in components):
            raise MucdError(f"components {quoted(components)} must be a list of whole numbers, how many values each of them may have")
        reference = None if reference is None else _array("reference", reference, 2 if components else 1)
        evidence = (exact_evidence if isinstance(mechanism, Partition) else votes_evidence)(_array("votes", votes, 2), reference, tuple(components))
    earned: dict[str, Any]
    if returns is None:
        assert evidence is not None
        earned = {"returns": [], "return_range": None, "rollouts": 0, "instances": sum(evidence["counts"][0][: components[0] if components else None])}
    else:
        # Of instances in an order that follows from what they earned, as of sorted returns, the bound by betting would be none (certify/confidence/means.py).
        earned = {"returns": np.random.default_rng().permutation(_array("returns", returns, 1)), "return_range": return_range, "rollouts": rollouts, "discount": discount, "clipped": clipped}
    inputs = make_inputs(mechanism=mechanism, units=units, actions=evidence, eta=eta, threat=threat, accountant=accountant, band=band, **earned)
    certificate = make_certificate(inputs, assumptions=[PARTS_ELSEWHERE if isinstance(mechanism, Partition) else ELSEWHERE, *assumptions], context={"baselines": None, "made": "elsewhere"})
    if out is not None:
        _write(Path(out), certificate)
    return certificate


def _check_statements(units, return_range, threat, accountant, band, rollouts, discount, clipped, assumptions) -> None:
    """Raise MucdError where one is of another type: what a certificate says must be what was given, and not what that can be turned into."""
    if not _is_whole(units):
        raise MucdError(f"units {quoted(units)} must be a whole number, at most {LARGEST_WHOLE:,}")
    if return_range is not None and not (isinstance(return_range, (tuple, list)) and len(return_range) == 2 and all(map(_is_number, return_range))):
        raise MucdError(f"return_range {quoted(return_range)} must be two numbers, (least, greatest)")
    for name, value in (("threat", threat), ("accountant", accountant), ("band", band)):
        if not isinstance(value, str):
            raise MucdError(f"{name} {quoted(value)} must be a text")
    if not _is_whole(rollouts) or type(clipped) is not bool or not _is_number(discount):
        raise MucdError(f"rollouts {quoted(rollouts)} must be a whole number, discount {quoted(discount)} a number, and clipped {quoted(clipped)} True or False")
    if not isinstance(assumptions, (tuple, list)) or not all(isinstance(text, str) and text.isprintable() for text in assumptions):
        raise MucdError(f"assumptions {quoted(assumptions)} must be a list of sentences, each one line of printable text")


def _is_number(value) -> bool:
    if type(value) is int:
        return abs(value) <= sys.float_info.max
    return isinstance(value, (float, np.integer, np.floating)) and math.isfinite(value)


def _is_whole(value) -> bool:
    return type(value) is int and abs(value) <= LARGEST_WHOLE


def _check_new(out) -> None:
    """Raise MucdError unless a certificate can be written there: before it is made."""
    folder = Path(_path("out", out))
    try:
        if (folder / "certificate.json").exists():
            raise MucdError(f"{folder} has a certificate already: choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MucdError(f"{str(folder)!r:.100} cannot be made ({error.strerror}): choose another folder") from None


def verify(certificate: dict | str, *, patience: float = 1.0) -> list[str]:
    """Every mismatch between what a certificate says and what follows from the evidence in it: an empty list if it holds.

    Args:
        certificate: as `certify` returns it, or the path of a certificate.json or of a run folder.
        patience: spend up to so many times the usual work.

    Raises:
        MucdError: no certificate of this format, or more work than that.
    """
    if not isinstance(certificate, (dict, str, Path)) or not _is_number(patience):
        raise MucdError(f"certificate {quoted(certificate)} must be a certificate or its path, and patience {quoted(patience)} a number")
    if isinstance(certificate, dict):
        try:
            content = json.dumps(certificate).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise MucdError(f"this certificate is no JSON ({printable(error)}): give it as `certify` returns it") from None
        return mismatches(parse_certificate(content, "this certificate"), patience)
    path = Path(_path("certificate", certificate))
    with _files_named():
        return mismatches(read_certificate(path / "certificate.json" if path.is_dir() else path, patience), patience)


def _called(command: Callable, arguments: list[str], options: dict) -> dict:
    """What `mucd` with these arguments would print with --json."""
    from mucd_ray.cli import build_parser

    printed: list[str] = []
    words = [*arguments, "--json"]
    for name, value in options.items():
        words += _words("--" + name.replace("_", "-"), value)
    for word in words:
        _text("argument", word)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            parsed = build_parser().parse_args(words)
    except SystemExit:
        raise MucdError(" ".join(told.getvalue().split()).removeprefix("mucd: error: ") or "help is for the command line: leave it out") from None
    with _files_named():
        command(parsed, printed.append)
    return json.loads(printed[0])


@contextlib.contextmanager
def _files_named():
    """Files and folders that cannot be read or written are refused in a line, as by the commands."""
    try:
        yield
    except OSError as error:
        raise MucdError(f"{error.strerror or error}: {printable(error.filename or 'a file')}") from error


def _path(name: str, value) -> str:
    """A path as text. Raises MucdError where it is none that a system could hold."""
    if not isinstance(value, (str, Path)) or not str(value):
        raise MucdError(f"{name} {quoted(value)} must be a path")
    return _text(name, str(value))


def _text(name: str, value: Text) -> Text:
    """What a command line could hold, too. Raises MucdError."""
    try:
        if value is not None and b"\0" in os.fsencode(value):
            raise ValueError
    except (TypeError, ValueError):
        raise MucdError(f"{name} {quoted(value)} must be a text that a command line could hold, without zeros and halves of characters") from None
    return value


def _words(option: str, value) -> list[str]:
    """An option as words of the command line."""
    if value is None or value is False and option != "--mirrored":
        return []
    if isinstance(value, bool):
        return [option if value else option.replace("--", "--no-", 1)]
    if option == "--make-kwargs":
        try:
            return [f"{option}={json.dumps(value)}"]
        except (TypeError, ValueError, RecursionError) as error:
            raise MucdError(f"make_kwargs {quoted(value)} are no JSON ({printable(error)}): give texts, numbers, lists and dictionaries") from None
    try:
        if isinstance(value, dict):
            return [f"{option}={key}={number}" for key, number in value.items()]
        return [f"{option}={','.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"]
    except ValueError:  # thousands of digits
        raise MucdError(f"{option} {quoted(value)} cannot be written down: give another value") from None


def _name_of(trainer: Callable) -> str:
    """path/to/file.py:function, by which processes elsewhere find it."""
    name, file = getattr(trainer, "__qualname__", ""), None
    with contextlib.suppress(TypeError, OSError):
        file = inspect.getsourcefile(trainer)
    if file is None or not Path(file).is_file() or not name.isidentifier() or name == "<lambda>":
        raise MucdError(f"trainer {name or trainer!r} is not a function at the top of a file, where the processes that train could find it: write it to a file, and give 'path/to/file.py:function'")
    return f"{file}:{name}"


def _written(card: "EnvironmentCard", stack: contextlib.ExitStack) -> str:
    from mucd_ray.data.environments.card import EnvironmentCard

    if not isinstance(card, EnvironmentCard):
        raise MucdError(f"environment {quoted(card)} must be an EnvironmentCard, or the path of its JSON file")
    path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "card.json"
    path.write_text(json.dumps(card.to_dict()))
    return str(path)


def _array(name: str, values, dimensions: int) -> np.ndarray:
    try:
        array = np.asarray(values)
        if array.ndim != dimensions or array.dtype.kind not in "fiub" or not array.size:
            raise ValueError(f"shape {array.shape}, dtype {array.dtype}")
    except Exception as error:  # an object of the user's may raise anything
        raise MucdError(f"{name} ({printable(error)}) must be an array of numbers with {dimensions} dimension{'s' * (dimensions > 1)}, not empty") from None
    return array


def _write(folder: Path, certificate: dict) -> None:
    from mucd_ray.report.report import report_files

    files = report_files(certificate, {}, str(folder)) | {"certificate.json": json.dumps(certificate, indent=1).encode()}
    for name, content in files.items():
        with _files_named():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (folder / name).is_symlink():
            raise MucdError(f"{folder / name} is a link, which may lead anywhere: remove it, or choose another folder")
        write_file(folder / name, content)
