from mucd_ray.words import counted


def test_nouns_follow_their_number():
    assert [counted(n, "trajectory") for n in (0, 1, 2)] == ["0 trajectories", "1 trajectory", "2 trajectories"]
    assert counted(1, "insertion", "removal") == "1 insertion or removal" and counted(1000, "instance", form=",") == "1,000 instances"
