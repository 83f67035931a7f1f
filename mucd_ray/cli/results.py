"""`mucd watch`, `serve`, `verify` and `report`: what is done with a run or its certificate."""

import json
import os

from mucd_ray.cli.options import add_command, path

VALID = "VALID: every number follows from the evidence in the file (the evidence itself, and which mechanism, unit and returns it is about, is taken as it is)."


def add_watch(commands):
    sub = add_command(commands, "watch", watch, "Show how a run is going: instances, rate, trainers, current bounds.", "mucd watch runs/acrobot")
    sub.add_argument("run", type=path, help="run folder, or its URL")
    sub.add_argument("--once", action="store_true", help="show it once instead of until the run ends")


def watch(options, out):
    from mucd_ray.service.watching.watch import watch_run

    watch_run(options, out)


def add_serve(commands):
    sub = add_command(commands, "serve", serve, "Answer observations over HTTP with the ensemble's action and its certified radius (extra `serve`).", "mucd serve runs/acrobot --port 8000")
    sub.add_argument("run", type=path, help="run folder with a certificate")
    sub.add_argument("--encoder", type=path, metavar="FILE", help="the file with which the run began, if it has one")
    sub.add_argument("--features", metavar="NAME", help="the features of a plug-in with which the run began, if it has some")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen at; anybody who reaches it may ask")
    sub.add_argument("--port", type=int, default=8000, help="port to listen at")
    sub.add_argument("--replicas", type=int, default=1, help="copies of the ensemble, one CPU each")
    sub.add_argument("--address", help="Ray cluster to join, on whose head node it listens (default: RAY_ADDRESS, or a local Ray)")


def serve(options, out):
    from mucd_ray.service.serving.serve import serve_run

    serve_run(options.run, encoder=options.encoder, features=options.features, host=options.host, port=options.port, replicas=options.replicas, address=options.address, out=out)


def add_verify(commands):
    sub = add_command(commands, "verify", verify, "Re-derive every number of a certificate from its evidence; exit status 1 on any mismatch.", "mucd verify runs/acrobot/certificate.json")
    sub.add_argument("certificate", type=path, help="certificate.json, or the run folder that holds it")
    sub.add_argument("--patience", type=float, default=1.0, metavar="N", help="spend up to N times the usual work (some ten minutes of a core, 64 MiB) on a file that asks for more")


def verify(options, out):
    from mucd_ray.certify.file.certificate import read_certificate, standing_assumptions
    from mucd_ray.certify.file.certificate import verify as find_mismatches
    from mucd_ray.certify.file.plain import plain_words

    file = os.path.join(options.certificate, "certificate.json") if os.path.isdir(options.certificate) else options.certificate
    certificate = read_certificate(file, options.patience)
    mismatches = find_mismatches(certificate, options.patience)
    if options.json:
        out(json.dumps({"valid": not mismatches, "mismatches": mismatches}))
    elif mismatches:
        out("\n".join([*mismatches[:20], *([f"and {len(mismatches) - 20} more"] if len(mismatches) > 20 else []), f"INVALID: {file}"]))
    else:
        standing = len(standing_assumptions(certificate["inputs"]))
        out("\n".join([*plain_words(certificate), *certificate["claim"], "Assumptions of every certificate:", *certificate["assumptions"][:standing], *_words_of_the_maker(certificate["assumptions"][standing:]), VALID]))
    return 1 if mismatches else 0


def _words_of_the_maker(assumptions: list[str]) -> list[str]:
    """Each marked by itself: a sentence of the maker's may look like one of ours."""
    return ["Further assumptions, in the words of the certificate's maker, which nothing checks:", *(f"> {text}" for text in assumptions)] if assumptions else []


def add_report(commands):
    sub = add_command(commands, "report", report, "Write report.html and the plots of a certified run.", "mucd report runs/acrobot")
    sub.add_argument("run", type=path, help="run folder")


def report(options, out):
    from mucd_ray.service.runs.commands import report_run

    report_run(options, out)
