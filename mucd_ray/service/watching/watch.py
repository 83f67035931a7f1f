"""`mucd watch`: how a run is going, from its folder alone; works wherever the folder can be read."""

import json
import time

from mucd_ray.certify.rounding import percent_down, round_down
from mucd_ray.errors import MucdError
from mucd_ray.files import as_expected, printable
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.watching.live import drivers
from mucd_ray.words import counted

LOOK_EVERY = 2.0
WIDTH = 30
# What moves in live.json while nothing happens.
CLOCKS = ("updated", "instances_per_second", "seconds_left")
UP_AND_CLEAR = "\x1b[{}A\x1b[J"


def watch_run(options, out) -> None:
    """Show the run until it ends or the user interrupts; on a terminal in place, otherwise one block of text per change."""
    store, shown, told = RunStore.open(options.run), 0, None
    unit = store.settings().mechanism.unit
    while True:
        news, at_work = store.read_json("live.json"), drivers(store)
        if news is None:
            raise MucdError(f"{options.run} has no news yet (live.json): it appears when training begins")
        if not isinstance(news, dict):
            raise MucdError(f"{store.file('live.json')} is no JSON object: go on with the run, and it is written anew")
        in_place = out.on_terminal and not options.json
        state = {name: value for name, value in news.items() if name not in CLOCKS}, [{name: value for name, value in driver.items() if name != "seen"} for driver in at_work]
        if options.json and state != told:
            out(json.dumps(news | {"drivers": at_work}))
        elif in_place or state != told:
            with as_expected(store.file("live.json"), "go on with the run, and it is written anew"):
                text = describe(store, news, at_work, unit)
            # In place: over the lines of the last time.
            out("\n".join(text), control=UP_AND_CLEAR.format(shown) if shown and in_place else "")
            shown = len(text)
        told = state
        with as_expected(store.file("live.json"), "go on with the run, and it is written anew"):
            if options.once or not at_work and (news["finished"] or _is_certified(store, news["instances_wanted"])):
                return
        time.sleep(LOOK_EVERY)


def _is_certified(store: RunStore, instances: int) -> bool:
    """Whether the run is finished although its last driver was killed before it could say so."""
    certificate = store.read_json("certificate.json")
    with as_expected(store.file("certificate.json"), "make it again with `mucd certify`"):
        return certificate is not None and certificate["results"]["instances"] >= instances


def describe(store: RunStore, news: dict, at_work: list[dict], unit: str) -> list[str]:
    """Lines about a run; `news` is its live.json."""
    done, wanted, rate = news["instances_done"], news["instances_wanted"], news["instances_per_second"]
    full = round(WIDTH * min(max(done / wanted, 0), 1))
    lines = [f"{store.location}: {done} of {wanted} instances  [{'#' * full}{'-' * (WIDTH - full)}]  {_pace(rate, news)}"]
    failures = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(news["failures"].items())) or "none"
    lines.append(f"trainers: {news['trainers']['alive']} at work, {news['trainers']['wanted']} wanted; failures: {failures}")
    lines += [f"driver {driver['process']} on {printable(driver['host'])}, seen {max(time.time() - driver['seen'], 0):.0f} s ago" for driver in at_work] or ["no driver is at work"]
    bounds = news["bounds"]
    if news["finished"]:
        lines.append(f"certificate  {store.file('certificate.json')}")
    if bounds is None:
        return lines if news["finished"] else [*lines, "no bounds yet: the first are made from 100 instances"]
    lines.append(f"from the first {bounds['instances']} instances, valid at every look together: mean {(what := bounds.get('what', 'return'))} {round_down(bounds['mean_return'], 4)}")
    for share, entry in bounds["keeps"].items():
        kept = f"up to r = {counted(entry['radius'], unit)} ({percent_down(entry['fraction'])} %), expected {what} at least {round_down(entry['bound'], 5)}"
        lines.append(f"  keeps {100 * float(share):.0f} % {kept if entry['radius'] >= 0 else 'at no r'}")
    return lines


def _pace(rate: float, news: dict) -> str:
    if news["finished"]:
        return "finished"
    if not rate:
        return "waiting"
    left = news["seconds_left"]
    minutes, seconds = divmod(round(left), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{rate:.3g}/s, {f'{hours} h ' if hours else ''}{f'{minutes} min ' if hours or minutes else ''}{seconds} s left"
