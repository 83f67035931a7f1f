import functools
import io
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from mucd_ray.certify.file.certificate import make_certificate, make_inputs, read_certificate
from mucd_ray.certify.file.evidence import continuous_evidence, exact_evidence, histogram, levels, scores_evidence, votes_evidence
from mucd_ray.certify.file.plain import plain_words
from mucd_ray.certify.file.voted import voted_evidence
from mucd_ray.certify.policy import return_band
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.partition import Partition
from mucd_ray.report import plots
from mucd_ray.report.report import report_files

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


POLICIES = 160
RNG = np.random.default_rng(7)
SCORES = RNG.beta([[6.0], [3.0], [1.0]], 2.0, (POLICIES, 5, 3, 1))[..., 0]
PULLS = RNG.normal([0.5, -0.2], [0.1, 0.4], (POLICIES, 4, 2)).clip(-2, 2)
ACTIONS = {
    "scores": scores_evidence(histogram(levels(SCORES, 0, 1))),
    "continuous": continuous_evidence(histogram(levels(PULLS, -2, 2)), [-2, -2], [2, 2]),
}


def evidence(**changes):
    """A symmetric threat, the default, takes ten times as long to certify as threat="insert"."""
    rng = np.random.default_rng(changes.pop("seed", 0))
    votes = np.array([rng.multinomial(POLICIES, p) for p in rng.dirichlet([1.0, 0.2, 0.2], 40)] + [[80, 80, 0]])
    defaults = {
        "mechanism": Mechanism(sample_rate=0.01, noise_multiplier=20.0, clip_norm=0.5, steps=50, normaliser=64.0),
        "units": 12345,
        "actions": votes_evidence(votes, reference=np.where(np.arange(41) < 9, 2, votes.argmax(axis=1))),
        "returns": rng.normal(-90.0, 20.0, POLICIES).clip(-500, 0),
        "return_range": (-500.0, 0.0),
        "radius_cap": 1500,
    }
    return defaults | changes


def shown(text):
    return float(text.removesuffix(" %").replace(",", ""))


@functools.cache
def certificate_of(inputs, assumptions, context):
    """A certificate of these JSON texts, as a JSON text: many tests show the same one."""
    return json.dumps(make_certificate(json.loads(inputs), assumptions=json.loads(assumptions), context=json.loads(context)))


def write_run(folder, *, context=CONTEXT, assumptions=ASSUMPTIONS, baselines=None, **changes):
    folder.mkdir(exist_ok=True)
    certificate = json.loads(certificate_of(*map(json.dumps, (make_inputs(**evidence(**changes)), assumptions, context))))
    (folder / "certificate.json").write_text(json.dumps(certificate))
    if baselines is not None:
        (folder / "baselines.json").write_text(json.dumps(baselines))
    return certificate


def write_report(folder):
    baselines = folder / "baselines.json"
    files = report_files(read_certificate(folder / "certificate.json"), json.loads(baselines.read_text()) if baselines.exists() else {})
    (folder / "plots").mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder / "report.html"


def test_the_page_holds_the_certificates_numbers_and_nothing_from_elsewhere(tmp_path):
    baselines = {"best_constant_action": "2", "best_constant_return": -500.0, "behaviour": -150.25}
    certificate = write_run(tmp_path, baselines=baselines)
    path = write_report(tmp_path)
    page = Page(path.read_text())
    policy, action = certificate["results"]["policy"], certificate["results"]["action"]
    assert path == tmp_path / "report.html"
    assert not set(certificate["claim"] + ASSUMPTIONS + [certificate["sha256"]]) - set(page.texts)
    curve = policy["curve"]
    for share, entry in policy["keeps"].items():
        radius, fraction, bound, most, median = map(shown, page.rows("kept")[f"{100 * float(share):g} %"])
        at = curve["radius"].index(entry["radius"])
        assert radius == entry["radius"] > 0
        # Claimed numbers are rounded to the safe side.
        for text, exact in ((fraction, 100 * entry["fraction"]), (bound, entry["bound"]), (median, curve["quantiles"]["0.5"][at]), (-most, -curve["ceiling"][at])):
            assert text == pytest.approx(exact, rel=1e-2) and text <= exact
    # What is certified above each of them stands beside; the policy trained without noise is no yardstick.
    above = {level: max(r for r, bound in zip(curve["radius"], curve["bound"], strict=True) if bound > level) for level in (-150.25, -500)}
    rows = {"Trained without noise": ["-80.5", ""], "Behaviour policy": ["-150.25", f"{above[-150.25]:,}"], "Best constant action (action 2)": ["-500", f"{above[-500]:,}"]}
    assert rows.items() <= page.rows("baselines").items()
    for name, scope in (("Each state by itself", "per_state"), ("All states together", "family_wise")):
        certified, right, median, mean, largest = map(shown, page.rows("actions")[name])
        radii = np.array([-1 if r is None else r for r in action[scope]["radius"]])
        share = np.mean(radii >= 1)
        agrees = np.equal(action["action"], certificate["inputs"]["actions"]["reference"])
        accuracy = np.mean((radii >= 1) & agrees)
        for text, exact in ((certified, 100 * share), (right, 100 * accuracy), (mean, radii[radii >= 1].mean())):
            assert exact * 0.99 <= text <= exact
        assert accuracy < share < 1 and (median, largest) == (action[scope]["median_radius"], action[scope]["max_radius"])
    assert "votes: at each state the action that most instances take" in path.read_text()
    mechanism = page.rows("mechanism-table")
    constants = {"Sample rate q": ["0.01"], "Noise multiplier σ": ["20"], "Clip norm C": ["0.5"], "Steps T": ["50"], "Units in D, N": ["12,345"]}
    assert {name: mechanism[name] for name in constants} == constants
    assert page.rows("evidence")["dataset sha256"] == ["ab" * 32] and page.rows("software") == {"numpy": ["2.4.6"]}
    assert len(page.loads) == 10 and all(address.startswith("data:image/png;base64,") for address in page.loads)
    assert all(len(attributes["alt"]) > 40 for tag, attributes in page.tags if tag == "img")
    assert "NOT SOUND" not in path.read_text()
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted(
        ["baselines.json", "certificate.json", "report.html", "plots"]
        + ["action_radii.png", "certified_share.png", "poisoned_return.png", "return_bound.png", "returns.png"]
    )


def test_plain_words_come_first(tmp_path):
    certificate = write_run(tmp_path)
    texts = Page(write_report(tmp_path).read_text()).texts
    places = [texts.index(sentence) for sentence in [*plain_words(certificate), certificate["claim"][0]]]
    assert places == sorted(places) and len(places) == 3


def test_every_route_and_every_split_is_shown_and_the_claimed_and_the_worst_are_marked(tmp_path):
    certificate = write_run(tmp_path, actions=None, radius_cap=300)
    page = Page(write_report(tmp_path).read_text())
    policy, splits = certificate["results"]["policy"], certificate["results"]["accounting"]["splits"]
    half = policy["curve"]["radius"].index(policy["keeps"]["0.5"]["radius"])
    first, *others = page.tables["routes"][1:]
    assert first[0] == "order-statistic band of all returns, claimed" and len(others) == 4 and not any("claimed" in row[0] for row in others)
    for (name, *texts), route in zip([first, *others], ["order-statistic", "dkw", "hoeffding", "empirical-bernstein", "betting"], strict=True):
        bounds = policy["curve"]["bound_by_route"][route]
        for text, exact in zip(map(shown, texts), (bounds[0], bounds[half]), strict=True):
            assert route in name.lower() and text <= exact and text == pytest.approx(exact, rel=1e-5)
    rows = page.tables["splits"][1:]
    assert [[int(inserted), int(removed)] for inserted, removed, _ in rows] == [list(pair) for pair in zip(splits["inserted"], splits["removed"], strict=True)]
    assert ["worst" in row[2] for row in rows] == [bound == min(splits["bound"]) for bound in splits["bound"]]


def test_scores_and_continuous_actions_have_their_own_tables_and_figures(tmp_path):
    for kind, figures in (("scores", {"certified_share.png", "action_radii.png"}), ("continuous", {"action_widths.png"})):
        certificate = write_run(tmp_path / kind, actions=ACTIONS[kind], threat="insert")
        text = write_report(tmp_path / kind).read_text()
        page, action = Page(text), certificate["results"]["action"]
        assert {path.name for path in (tmp_path / kind / "plots").iterdir()} == figures | {"return_bound.png", "poisoned_return.png", "returns.png"}
        assert ("the action with the largest mean score" if kind == "scores" else "the median of the instances") in text and "splits" not in page.tables
        if kind == "scores":
            # There is no reference to be right against.
            assert len(page.rows("actions")["All states together"]) == 4 and "agreement" not in text and "actions" in page.tables
            continue
        rows = page.tables["tolerances"][1:]
        expected = [(share, name, entry) for scope, name in (("per_state", "Each state"), ("family_wise", "All states")) for share, entry in action[scope]["tolerance"].items()]
        for (title, certified, median, largest), (share, name, entry) in zip(rows, expected, strict=True):
            assert title.startswith(f"{200 * float(share):g} % of the action range wide{name}") and shown(certified) == 100 * entry["certified_share"] > 0
            assert (shown(median), shown(largest)) == (entry["median_radius"], entry["max_radius"])


def test_the_voted_policy_has_a_figure_and_exact_votes_are_said_to_be_exact(tmp_path):
    episode = {"rows": [0, 1], "node": [0, 0, 1, 1, 1], "action": [0, 1, 0, 1, 2], "reward": [-60.0, -100.0, -20.0, -40.0, -300.0], "next": [1, 1, 0, 0, 0]}
    votes = np.array([[90, 10, 0], [60, 20, 20]])
    certificate = write_run(
        tmp_path / "run", mechanism=Partition(parts=100), actions=exact_evidence(votes, [0, 0]), voted=voted_evidence("exact", 9, None, [votes] * 3, [episode] * 3)
    )
    text = " ".join(Page(write_report(tmp_path / "run").read_text()).texts)
    assert (tmp_path / "run" / "plots" / "voted_return.png").exists()
    voted = certificate["results"]["voted"]
    assert voted["unpoisoned_mean"] == -80 and voted["keeps_played"]["0.75"] == {"radius": 19, "fraction": 19 / 12345, "bound": -80.0}
    assert "half is kept up to 19 trajectories in these 3 episodes" in text and "Certified return of the voted policy" in text and "this is certain" in text


@pytest.mark.parametrize("goal, verdict", [("return>=0.5@0.01", "met"), ("return>=90%@5%", "not met")])
def test_goals_and_looks_are_shown(tmp_path, goal, verdict):
    certificate = write_run(tmp_path, actions=None, goal=goal, looks="anytime", rollouts=5, discount=0.99, threat="insert")
    page = Page(write_report(tmp_path).read_text())
    results = certificate["results"]
    at = page.texts.index(f"Goal {goal}")
    assert page.texts[at + 1] == verdict == ("met" if results["goal"]["met"] else "not met")
    assert f"r = {results['goal']['radius']:,}" in page.texts[at + 2]
    mechanism = page.rows("mechanism-table")
    assert mechanism["Error probability η"] == [f"0.001, of which this look spends {results['eta']:.6g}"]
    assert "look number 2, at 160 instances" in mechanism["Looks at results"][0]
    assert mechanism["Return of an instance"] == ["mean of 5 rollouts, discounted by 0.99 per step"]


def test_figures_show_what_the_certificate_spends_and_claims(tmp_path, monkeypatch):
    seen = {}

    def spy(name):
        plot = getattr(plots, name)
        monkeypatch.setattr(plots, name, lambda **arrays: seen.setdefault(name, arrays) and plot(**arrays))

    for name in ("return_bound", "poisoned_return", "certified_share", "return_distribution"):
        spy(name)
    certificate = write_run(tmp_path, looks="anytime", threat="insert")
    write_report(tmp_path)
    inputs, results = certificate["inputs"], certificate["results"]
    curve = results["policy"]["curve"]
    main, other, mean_route = seen["return_bound"]["bounds"].items()
    assert main[0].startswith("certified, order-statistic") and main[1].tolist() == curve["bound"] and other[1].tolist() == curve["bound_by_route"]["dkw"]
    best = max(("hoeffding", "empirical-bernstein", "betting"), key=lambda name: curve["bound_by_route"][name][0])
    assert best in mean_route[0] and mean_route[1].tolist() == curve["bound_by_route"][best]
    poisoned = seen["poisoned_return"]
    assert poisoned["least"].tolist() == curve["bound"] and poisoned["most"].tolist() == curve["ceiling"]
    labels = {"50 % of policies, at least": "0.5", "75 % of policies, at least": "0.25", "90 % of policies, at least": "0.1"}
    found = {label.replace("\N{NO-BREAK SPACE}", " "): values.tolist() for label, values in poisoned["quantiles"].items()}
    assert found == {label: curve["quantiles"][level] for label, level in labels.items()}
    band = return_band(inputs["returns"], inputs["return_range"], eta=results["eta"], method=inputs["band"])
    assert results["eta"] < inputs["eta"]
    np.testing.assert_array_equal(next(iter(seen["return_distribution"]["bounds"].values())), band.probability)
    # The curves that are drawn are those of the certificate.
    share = seen["certified_share"]
    for measure, arrays in (("stability_ratio", share["scopes"]), ("certified_accuracy", share["accuracy"])):
        for scope, radius in zip(("per_state", "family_wise"), arrays.values(), strict=True):
            listed = results["action"][scope]["curve"]
            assert [np.mean(radius >= r) for r in listed["radius"]] == pytest.approx(listed[measure])


def test_plots_are_pictures_and_follow_the_data(tmp_path):
    pictures = []
    for name, seed in (("a", 0), ("again", 0), ("other", 1)):
        write_run(tmp_path / name, seed=seed, threat="insert")
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
    write_run(tmp_path, context=context, assumptions=[evil], actions=None, threat="insert", baselines={"best_constant_action": evil, "best_constant_return": -500})
    page = Page(write_report(tmp_path).read_text())
    assert "script" not in {tag for tag, _ in page.tags}
    assert sum(evil in text for text in page.texts) >= 7


def test_certificates_of_nothing(tmp_path):
    # No actions, no baselines at all.
    write_run(tmp_path / "policy", actions=None, context={}, assumptions=[], band="dkw", threat="insert")
    page = Page(write_report(tmp_path / "policy").read_text())
    assert "actions" not in page.tables and "software" not in page.tables and len(page.loads) == 6
    assert {path.name for path in (tmp_path / "policy/plots").iterdir()} == {"return_bound.png", "poisoned_return.png", "returns.png"}
    # One state whose votes are tied, a training that hides nothing, and equal returns.
    leaky = Mechanism(sample_rate=1.0, noise_multiplier=1.0, clip_norm=1.0, steps=20, normaliser=1.0, unit="trajectory")
    nothing = {"mechanism": leaky, "units": 3, "radius_cap": 3, "returns": np.full(4, 7.5), "return_range": (0.0, 10.0)}
    certificate = write_run(tmp_path / "nothing", **nothing, actions=votes_evidence([[2, 2]]))
    assert certificate["results"]["policy"]["keeps"]["0.9"]["radius"] == -1
    page = Page(write_report(tmp_path / "nothing").read_text())
    assert page.rows("kept")["90 %"][0].startswith("not certified, even at r = 0")
    assert page.rows("actions")["Each state by itself"] == ["0 %", "none", "none", "none"]
    assert len(page.tables["routes"][0]) == 2
    # Four instances cannot bound a median action.
    pulls = continuous_evidence(histogram(levels(PULLS[:4], -2, 2)), [-2, -2], [2, 2])
    write_run(tmp_path / "wide", **nothing, actions=pulls)
    page = Page(write_report(tmp_path / "wide").read_text())
    assert all(row[1:] == ["0 %", "none", "none"] for row in page.tables["tolerances"][1:])


def test_no_report_of_a_certificate_that_was_edited(tmp_path):
    certificate = write_run(tmp_path, actions=None, threat="insert")
    certificate["results"]["policy"]["keeps"]["0.5"]["bound"] += 50
    (tmp_path / "certificate.json").write_text(json.dumps(certificate))
    with pytest.raises(MucdError, match="was changed after it was made"):
        write_report(tmp_path)


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
