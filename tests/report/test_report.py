import io
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from mucd_ray.certify.certificate import make_certificate, make_inputs
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.mechanism import Mechanism
from mucd_ray.report.report import write_report

CONTEXT = {
    "dataset": {"name": "acrobot/mixed-v0", "environment": "Acrobot-v1", "sha256": "ab" * 32},
    "baselines": {"non_private": -80.5},
    "software": {"numpy": "2.4.6"},
}
ASSUMPTIONS = ["The attacker does not know the run's secret."]
CHROMIUM = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]


class Page(HTMLParser):
    """Cells of every table by its id, texts, and addresses that a browser would load."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.texts, self.loads, self.tags, self._table = {}, [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.loads += [attributes[key] for key in ("src", "srcset", "href") if key in attributes]
        if tag == "table":
            self._table = self.tables.setdefault(attributes["id"], [])
        if tag == "tr":
            self._table.append([])
        if tag in ("td", "th"):
            self._table[-1].append("")

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())
            if self._table and self._table[-1]:
                self._table[-1][-1] += data.strip().replace("\N{NO-BREAK SPACE}", " ")

    def handle_endtag(self, tag):
        if tag == "table":
            self._table = None

    def rows(self, table):
        return {cells[0]: cells[1:] for cells in self.tables[table][1:]}


def evidence(**changes):
    rng = np.random.default_rng(changes.pop("seed", 0))
    votes = np.array([rng.multinomial(200, p) for p in rng.dirichlet([1.0, 0.2, 0.2], 40)])
    defaults = {
        "mechanism": Mechanism(sample_rate=0.01, noise_multiplier=20.0, clip_norm=0.5, steps=50, normaliser=64.0),
        "units": 12345,
        "votes": np.concatenate([votes, [[100, 100, 0]]]),
        "returns": rng.normal(-90.0, 20.0, 200).clip(-500, 0),
        "return_range": (-500.0, 0.0),
        "radius_cap": 1500,
    }
    return defaults | changes


def write_run(folder, *, context=CONTEXT, assumptions=ASSUMPTIONS, baselines=None, **changes):
    folder.mkdir(exist_ok=True)
    certificate = make_certificate(make_inputs(**evidence(**changes)), assumptions=assumptions, context=context)
    (folder / "certificate.json").write_text(json.dumps(certificate))
    if baselines is not None:
        (folder / "baselines.json").write_text(json.dumps(baselines))
    return certificate


def test_the_page_holds_the_certificates_numbers_and_nothing_from_elsewhere(tmp_path):
    baselines = {"best_constant_action": "2", "best_constant_return": -500.0, "behaviour": -150.25}
    certificate = write_run(tmp_path, baselines=baselines)
    path = write_report(tmp_path)
    page = Page(path.read_text())
    policy, action = certificate["results"]["policy"], certificate["results"]["action"]
    assert path == tmp_path / "report.html"
    assert not set(certificate["claim"] + ASSUMPTIONS + [certificate["sha256"]]) - set(page.texts)
    for share, entry in policy["keeps"].items():
        radius, fraction, bound = page.rows("kept")[f"{100 * float(share):g} %"]
        assert int(radius.replace(",", "")) == entry["radius"] > 0
        assert float(fraction.removesuffix(" %")) == pytest.approx(100 * entry["fraction"], rel=5e-3)
        assert float(bound) == pytest.approx(entry["bound"], rel=1e-5) and float(bound) <= entry["bound"]
    shown = page.rows("baselines")
    baseline_rows = {"Non-private learner": ["-80.5"], "Behaviour policy": ["-150.25"], "Best constant action (action 2)": ["-500"]}
    assert {name: shown[name] for name in baseline_rows} == baseline_rows
    for name, scope in (("Each state by itself", "per_state"), ("All states together", "family_wise")):
        certified, median, _, largest = page.rows("actions")[name]
        exact = 100 * action[scope]["certified_share"]
        assert exact * 0.995 <= float(certified.removesuffix(" %")) <= exact < 100  # claimed numbers are rounded down
        assert float(median.replace(",", "")) == action[scope]["median_radius"] and int(largest.replace(",", "")) == action[scope]["max_radius"]
    mechanism = page.rows("mechanism-table")
    constants = {"Sample rate q": ["0.01"], "Noise multiplier σ": ["20"], "Clip norm C": ["0.5"], "Steps T": ["50"], "Units in D, N": ["12,345"]}
    assert {name: mechanism[name] for name in constants} == constants
    assert page.rows("evidence")["dataset sha256"] == ["ab" * 32] and page.rows("software") == {"numpy": ["2.4.6"]}
    assert len(page.loads) == 8 and all(address.startswith("data:image/png;base64,") for address in page.loads)
    assert all(len(attributes["alt"]) > 40 for tag, attributes in page.tags if tag == "img")
    assert "NOT SOUND" not in path.read_text()
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted(
        ["baselines.json", "certificate.json", "report.html", "plots", "action_radii.png", "certified_share.png", "return_bound.png", "returns.png"]
    )


def test_plots_are_pictures_and_follow_the_data(tmp_path):
    pictures = []
    for name, seed in (("a", 0), ("again", 0), ("other", 1)):
        write_run(tmp_path / name, seed=seed)
        write_report(tmp_path / name)
        pictures.append({path.name: path.read_bytes() for path in (tmp_path / name / "plots").iterdir()})
    first, again, other = pictures
    assert first == again
    for name, png in first.items():
        pixels = imread(io.BytesIO(png))[..., :3]
        assert pixels.shape == (800, 1280, 3) and 10_000 < len(png) < 300_000
        assert 0.01 < np.mean(pixels.min(axis=2) < 0.9) < 0.6
        assert png != other[name]


def test_an_unsound_certificate_is_shown_as_one(tmp_path):
    write_run(tmp_path, accountant="published", baselines={})
    text = write_report(tmp_path).read_text()
    page = Page(text)
    assert ("div", {"class": "alarm", "role": "alert"}) in page.tags
    assert page.texts[0].startswith("NOT SOUND") and "Unsound certificate" in text
    red = np.array([0xB3, 0x26, 0x1E]) / 255
    for path in (tmp_path / "plots").iterdir():
        assert (np.abs(imread(path)[..., :3] - red).max(axis=2) < 0.02).sum() > 300, path


def test_texts_are_escaped(tmp_path):
    evil = "<script>alert('x')</script>"
    context = {"dataset": {"name": evil, "environment": evil}, evil: {evil: evil}, "software": {evil: evil}}
    write_run(tmp_path, context=context, assumptions=[evil], baselines={"best_constant_action": evil, "best_constant_return": -500})
    page = Page(write_report(tmp_path).read_text())
    assert "script" not in {tag for tag, _ in page.tags}
    assert sum(evil in text for text in page.texts) >= 7


def test_continuous_actions_and_certificates_of_nothing(tmp_path):
    # Continuous actions, no baselines at all.
    write_run(tmp_path / "continuous", votes=np.zeros((0, 3)), context={}, assumptions=[], band="dkw")
    page = Page(write_report(tmp_path / "continuous").read_text())
    assert "actions" not in page.tables and "software" not in page.tables and len(page.loads) == 4
    assert {path.name for path in (tmp_path / "continuous/plots").iterdir()} == {"return_bound.png", "returns.png"}
    # One state whose votes are tied, a training that hides nothing, and equal returns.
    leaky = Mechanism(sample_rate=1.0, noise_multiplier=1.0, clip_norm=1.0, steps=20, normaliser=1.0, unit="trajectory")
    nothing = {"mechanism": leaky, "units": 3, "radius_cap": 3, "votes": np.array([[2, 2]]), "returns": np.full(4, 7.5), "return_range": (0.0, 10.0)}
    certificate = write_run(tmp_path / "nothing", **nothing)
    assert certificate["results"]["policy"]["keeps"]["0.9"]["radius"] == -1
    page = Page(write_report(tmp_path / "nothing").read_text())
    assert page.rows("kept")["90 %"][0].startswith("not certified, even at r = 0")
    assert page.rows("actions")["Each state by itself"] == ["0 %", "none", "none", "none"]


def test_a_certificate_that_was_edited_or_is_missing_leaves_the_old_report(tmp_path):
    certificate = write_run(tmp_path)
    report = write_report(tmp_path)
    before = report.read_bytes()
    certificate["results"]["policy"]["keeps"]["0.5"]["bound"] += 50
    (tmp_path / "certificate.json").write_text(json.dumps(certificate))
    with pytest.raises(MucdError, match="was changed after it was made"):
        write_report(tmp_path)
    (tmp_path / "certificate.json").unlink()
    with pytest.raises(MucdError, match="cannot read"):
        write_report(tmp_path)
    assert report.read_bytes() == before


def test_the_report_needs_no_torch_ray_or_environment():
    check = "import sys, mucd_ray.report.report; sys.exit(str({'torch', 'ray', 'gymnasium', 'matplotlib.pyplot'} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.stderr.strip() == ""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no `chromium` on PATH: apt-get install chromium")
def test_a_real_browser_renders_the_page(tmp_path):
    certificate = write_run(tmp_path)
    address = write_report(tmp_path).resolve().as_uri()

    def chromium(*flags):
        command = ["chromium", *CHROMIUM, "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", *flags, address]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    page = Page(chromium("--dump-dom"))
    assert not set(certificate["claim"]) - set(page.texts)
    brightness = []
    for scheme in ("light", "dark"):
        picture = tmp_path / f"{scheme}.png"
        chromium("--window-size=1000,2600", f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", f"--screenshot={picture}")
        pixels = imread(picture)[..., :3]
        # Text and plots all the way down: no quarter of the page is of one colour.
        assert all(quarter.std() > 0.03 for quarter in np.array_split(pixels, 4))
        brightness.append(pixels.mean())
    assert brightness[0] > 0.85 and brightness[1] < 0.25
