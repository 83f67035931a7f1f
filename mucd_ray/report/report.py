"""The report of a run: report.html, one file that needs nothing else, and the plots as PNG files.

Everything shown is read from certificate.json and baselines.json; no number of the certificate is computed again here.
"""

import base64
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
import numpy as np

from mucd_ray.certify.certificate import content_hash, read_certificate, round_down
from mucd_ray.certify.bands import BANDS
from mucd_ray.certify.guarantees import THREATS
from mucd_ray.certify.policy import return_band
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.mechanism import UNITS
from mucd_ray.report import plots

BASELINES = {
    "non_private": "Non-private learner",
    "behaviour": "Behaviour policy",
    "best_constant_return": "Best constant action",
}
SCOPES = {"per_state": "Each state by itself", "family_wise": "All states together"}
ACCOUNTANTS = {
    "tradeoff": "exact trade-off curve of the composed mechanism",
    "rdp": "Rényi divergences of the exact mixture",
    "adp": "exact privacy profile",
    "published": "published rule, NOT SOUND, for comparison only",
}


def write_report(run: Path) -> Path:
    """Write RUN/plots/*.png and RUN/report.html from RUN/certificate.json and, if there, RUN/baselines.json -> path of the report.

    Raises:
        MucdError: the certificate is missing, of another format, or was changed after it was made; the folder cannot be written.
    """
    run = Path(run)
    certificate = read_certificate(run / "certificate.json")
    if content_hash(certificate) != certificate.get("sha256"):
        raise MucdError(
            f"{run / 'certificate.json'} was changed after it was made, so no report is written: `mucd verify` says where; "
            f"make it again with `mucd certify {run}`"
        )
    baselines = (certificate["context"].get("baselines") or {}) | _read_baselines(run / "baselines.json")
    figures = draw(certificate, baselines)
    page = render(certificate, baselines, figures)
    path = run / "report.html"
    try:
        (run / "plots").mkdir(exist_ok=True)
        for figure in figures:
            _write(run / "plots" / f"{figure.name}.png", figure.wide)
        _write(path, page.encode())
    except OSError as error:
        message = f"cannot write {error.filename or run}: {error.strerror}; mend the folder's permissions or free space, then `mucd report {run}`"
        raise MucdError(message) from None
    return path


@dataclass(frozen=True, kw_only=True)
class FigureData:
    """One plot in two widths, as PNG, with its texts."""

    name: str
    title: str
    caption: str
    alt: str
    wide: bytes
    narrow: bytes

    @property
    def wide_uri(self) -> str:
        return _data_uri(self.wide)

    @property
    def narrow_uri(self) -> str:
        return _data_uri(self.narrow)


def draw(certificate: dict, baselines: dict) -> list[FigureData]:
    figures = [_return_bound(certificate, baselines)]
    if "action" in certificate["results"]:
        figures += _actions(certificate)
    return [*figures, _returns(certificate)]


def _return_bound(certificate: dict, baselines: dict) -> FigureData:
    inputs, policy = certificate["inputs"], certificate["results"]["policy"]
    curve, units = policy["curve"], UNITS[inputs["mechanism"]["unit"]]
    levels = {"unpoisoned mean": policy["unpoisoned_mean"]}
    levels |= {name.lower(): baselines[key] for key, name in BASELINES.items() if _is_number(baselines.get(key))}
    levels["public floor"] = inputs["return_range"][0]
    kept = [(f"{100 * float(share):g} %", entry["radius"], entry["bound"]) for share, entry in policy["keeps"].items() if entry["radius"] >= 0]
    return _both(
        certificate,
        plots.return_bound,
        {
            "radius": np.array(curve["radius"]),
            "bounds": {_bound_label(name, inputs): np.array(curve["bound_by_band"][name]) for name in _bands(inputs)},
            "levels": levels,
            "kept": kept,
            "units": inputs["units"],
            "unit": UNITS[inputs["mechanism"]["unit"]],
        },
        name="return_bound",
        title="Certified return",
        caption=f"Lower bound on the expected return of one trained policy when up to r {units} are poisoned. All points of the "
        f"certified curve hold together with probability at least {_confidence(inputs)} %. Between two evaluated radii it shows the value of the "
        "larger one. The other curve uses another confidence band; it is drawn for comparison and not claimed.",
        alt=f"Certified lower bound on the expected return, falling from {number(curve['bound'][0])} at r = 0 to {number(curve['bound'][-1])} at "
        f"r = {whole(curve['radius'][-1])}. For comparison: {', '.join(f'{label} {number(level)}' for label, level in levels.items())}.",
    )


def _actions(certificate: dict) -> list[FigureData]:
    inputs, action = certificate["inputs"], certificate["results"]["action"]
    scopes = {f"{SCOPES[key].lower()} ({_confidence(inputs)} %)": _radii(action[key]) for key in SCOPES}
    arrays = {"scopes": scopes, "units": inputs["units"], "unit": UNITS[inputs["mechanism"]["unit"]]}
    states = f"{whole(action['states'])} state{'s' if action['states'] != 1 else ''}"
    alt = "; ".join(
        f"{name.lower()}: {number(100 * action[key]['certified_share'])} % certified, median radius {whole(action[key]['median_radius'])}, "
        f"largest {whole(action[key]['max_radius'])}"
        for key, name in SCOPES.items()
    )
    return [
        _both(
            certificate,
            plots.certified_share,
            arrays,
            name="certified_share",
            title="Share of states certified at r",
            caption=f"Share of the {states} at which the ensemble's majority action provably stays the most probable one when up to r "
            f"{arrays['unit']} are poisoned. States without a certificate count as not certified.",
            alt=f"Share of {states} certified against r. {alt}.",
        ),
        _both(
            certificate,
            plots.action_radii,
            arrays,
            name="action_radii",
            title="Certified radii of the actions",
            caption=f"How many of the {states} have which certified radius. “None”: the votes do not single out one action, and the "
            "certificate abstains.",
            alt=f"Histogram of the certified radii of {states}. {alt}.",
        ),
    ]


def _returns(certificate: dict) -> FigureData:
    inputs = certificate["inputs"]
    returns = np.array(inputs["returns"])
    bands = {name: return_band(returns, inputs["return_range"], eta=inputs["eta"], method=name) for name in _bands(inputs)}
    return _both(
        certificate,
        plots.return_distribution,
        {
            "returns": returns,
            "threshold": bands[inputs["band"]].threshold,
            "bounds": {_bound_label(name, inputs): band.probability for name, band in bands.items()},
            "return_range": tuple(inputs["return_range"]),
        },
        name="returns",
        title="Returns of the trained policies",
        caption=f"One rollout of each of the {whole(len(returns))} policies trained on D. Below: the share of policies that reach a return of at least t, in "
        "this sample and as a lower confidence bound for all policies that training could give. The certified return is computed from this bound.",
        alt=f"Distribution of {whole(len(returns))} returns from {number(returns.min())} to {number(returns.max())}, mean {number(returns.mean())}, "
        f"median {number(np.median(returns))}.",
    )


def render(certificate: dict, baselines: dict, figures: list[FigureData]) -> str:
    """The page as text. Every value is escaped by the template engine."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "whole": whole, "percent": percent, "claimed": round_down, "claimed_percent": claimed_percent}
    inputs, results, context = certificate["inputs"], certificate["results"], certificate["context"]
    dataset = context.get("dataset") or {}
    return environment.get_template("template.html").render(
        certificate=certificate,
        inputs=inputs,
        mechanism=inputs["mechanism"],
        units=UNITS[inputs["mechanism"]["unit"]],
        results=results,
        policy=results["policy"],
        action=results.get("action"),
        scopes=SCOPES,
        sound=results["sound"],
        confidence=_confidence(inputs),
        subject=dataset.get("name") or "offline dataset",
        environment=dataset.get("environment"),
        threat=THREATS[inputs["threat"]].format(units=UNITS[inputs["mechanism"]["unit"]]),
        accountant=ACCOUNTANTS[inputs["accountant"]],
        baselines=_baseline_rows(results["policy"], inputs, baselines),
        figures=figures,
        evidence=_flat({key: value for key, value in context.items() if key not in ("baselines", "software")}),
        software=_flat(context.get("software") or {}),
    )


def _baseline_rows(policy: dict, inputs: dict, baselines: dict) -> list[tuple[str, str]]:
    error = policy["unpoisoned_standard_error"]
    mean = number(policy["unpoisoned_mean"]) + (f" ± {number(error, 3)}" if error is not None else "")
    rows = [("Unpoisoned mean of the ensemble, ± standard error", mean)]
    for key, name in BASELINES.items():
        if _is_number(baselines.get(key)):
            which = baselines.get("best_constant_action") if key == "best_constant_return" else None
            rows.append((name + (f" (action {which})" if which is not None else ""), number(baselines[key])))
    floor, ceiling = inputs["return_range"]
    return [*rows, ("Public floor of the return", number(floor)), ("Public ceiling of the return", number(ceiling))]


def number(value, digits: int = 6) -> str:
    return "none" if value is None else f"{value:.{digits}g}"


def whole(value) -> str:
    """A count or a radius; a median radius may end in .5."""
    return "none" if value is None else f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def claimed_percent(fraction) -> str:
    """A claimed fraction, never rounded up."""
    return f"{round_down(100 * fraction, 3)}\N{NO-BREAK SPACE}%"


def percent(fraction) -> str:
    return f"{100 * fraction:.3g}\N{NO-BREAK SPACE}%"


def _bands(inputs: dict) -> list[str]:
    """The certificate's own band, then the other."""
    return sorted(BANDS, key=lambda name: name != inputs["band"])


def _bound_label(name: str, inputs: dict) -> str:
    title = "DKW" if name == "dkw" else name
    return f"certified, {title} band ({_confidence(inputs)} %)" if name == inputs["band"] else f"{title} band ({_confidence(inputs)} %)"


def _confidence(inputs: dict) -> str:
    return f"{100 * (1 - inputs['eta']):.12g}"


def _radii(scope: dict) -> np.ndarray:
    return np.array([-1 if r is None else r for r in scope["radius"]])


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)


def _flat(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in values.items():
        name = f"{prefix} {key}".strip().replace("_", " ")
        if isinstance(value, dict):
            rows += _flat(value, name)
        elif value is not None:
            rows.append((name, ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)))
    return rows


def _both(certificate: dict, plot, arrays: dict, **texts) -> FigureData:
    warning = "" if certificate["results"]["sound"] else "NOT SOUND"
    wide, narrow = (plot(**arrays, look=replace(look, warning=warning)) for look in (plots.WIDE, plots.NARROW))
    return FigureData(wide=wide, narrow=narrow, **texts)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _read_baselines(path: Path) -> dict:
    try:
        baselines = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise MucdError(f"cannot read {path}: {error}; delete it, and `mucd run` measures the baselines again") from None
    if not isinstance(baselines, dict):
        raise MucdError(f"{path} does not hold a JSON object; delete it, and `mucd run` measures the baselines again")
    return baselines


def _write(path: Path, content: bytes) -> None:
    """To a temporary name, then renamed: a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
