from hypothesis import given
from hypothesis import strategies as st

from mucd_ray.words import counted, harmless


def test_nouns_follow_their_number():
    assert [counted(n, "trajectory") for n in (0, 1, 2)] == ["0 trajectories", "1 trajectory", "2 trajectories"]
    assert counted(1, "insertion", "removal") == "1 insertion or removal" and counted(1000, "instance", form=",") == "1,000 instances"


@given(st.text(st.characters() | st.sampled_from("\x1b\x9b\u202e\ud800\r\t\n\x00")))
def test_foreign_text_cannot_steer_a_terminal(text):
    shown = harmless(text)
    assert all(part.isprintable() for part in shown.split("\n")) and shown.encode().decode() == shown
    assert harmless("größe 1 \x1b[2JVALID\r") == "größe 1 \\x1b[2JVALID\\r"
