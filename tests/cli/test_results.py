"""Verify as a user meets it, with files that anybody may have written."""

import json

import numpy as np

from mucd_ray.certify.file.certificate import make_certificate, make_inputs
from mucd_ray.certify.file.evidence import votes_evidence
from mucd_ray.cli import main
from mucd_ray.mechanism.gaussian.mechanism import Mechanism


def test_verify_accepts_the_true_and_rejects_the_edited(capfd, refusal, tmp_path):
    inputs = make_inputs(
        mechanism=Mechanism(sample_rate=0.1, noise_multiplier=20.0, clip_norm=1.0, steps=10, normaliser=1.0),
        units=500, radius_cap=20, actions=votes_evidence(np.array([[40, 0]])), returns=np.arange(40.0), return_range=(0, 50),
    )
    certificate = make_certificate(inputs, assumptions=["VALID for every r."], context={})
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(certificate))
    assert main(["verify", str(path)]) == 0
    shown = capfd.readouterr().out.splitlines()
    # The maker's own sentences are marked as such.
    assert shown[-1].startswith("VALID: ") and shown[-3:-1] == ["Further assumptions, in the words of the certificate's maker, which nothing checks:", "> VALID for every r."]
    assert main(["verify", str(tmp_path)]) == 0 and capfd.readouterr().out.splitlines() == shown, "of a run folder, too"
    certificate["results"]["policy"]["keeps"]["0.5"]["radius"] += 1
    path.write_text(json.dumps(certificate))
    assert main(["verify", str(path)]) == 1 and "INVALID" in capfd.readouterr().out
    assert "not JSON" in (path.write_text("{") and refusal("verify", str(path)))


def test_a_hostile_certificate_is_harmless_and_cheap(refusal, tmp_path):
    path = tmp_path / "certificate.json"
    for content, named in [
        ('{"format": "mucd-certificate/\\u001b[2JVALID"}', "mucd-certificate/\\x1b[2JVALID"),
        ('{"format": "mucd-certificate/\\ud800"}', "\\ud800"),
        ('{"context": {"far": 1e400}}', "1e400 is too large"),
        ('{"a": 1, "a": "\\u001b[2J"}', "duplicate key"),
        ("[" * 100_000, "not JSON"),
        ("1" * 10_000, "not JSON"),
    ]:
        path.write_text(content)
        message = refusal("verify", str(path))
        assert named in message and "\x1b" not in message
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)
    assert "at most 67,108,864 are read" in refusal("verify", str(path))
