"""Files that the user names are written whole or not at all; a file size limit stands for a full disk."""

import os
import resource

import numpy as np
import pytest

import mucd_ray
from mucd_ray.cli import main
from mucd_ray.mechanism.bag import Bag


@pytest.fixture
def full_disk():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_card_is_written_whole_and_never_over_another_file(tmp_path, capfd, full_disk):
    card = tmp_path / "card.json"
    assert main(["card", "CartPole-v1", "--out", str(card)]) == 2
    assert f"{card} cannot be written (File too large)" in capfd.readouterr().err and not os.listdir(tmp_path)
    card.write_text("mine")
    assert main(["card", "CartPole-v1", "--out", str(card)]) == 2
    assert "File exists" in capfd.readouterr().err and card.read_text() == "mine"


def test_a_plot_is_written_whole_and_what_was_there_stays(tmp_path, capfd, full_disk):
    log, plot = tmp_path / "log.csv", tmp_path / "plot.png"
    log.write_text("f1,act,ep\n0,0,0\n1,1,0\n0,1,1\n1,0,1\n")
    plot.write_bytes(b"before")
    assert main(["inspect", str(log), "--columns", "obs=f1,action=act,episode=ep", "--plot", str(plot)]) == 2
    assert "cannot be written (File too large)" in capfd.readouterr().err and plot.read_bytes() == b"before" and len(os.listdir(tmp_path)) == 2


def test_a_folder_has_a_certificate_only_when_all_of_it_is_there(tmp_path, full_disk):
    with pytest.raises(mucd_ray.MucdError, match="cannot be written"):
        mucd_ray.certify(mechanism=Bag(unit="trajectory", bag_size=3), units=50, returns=np.linspace(0, 1, 100), return_range=(0, 1), out=str(tmp_path / "mine"))
    assert not (tmp_path / "mine" / "certificate.json").exists()
