"""A command's answer and its refusal, in this process."""

import json

import pytest

from mucd_ray.cli import main


@pytest.fixture
def answer(capfd):
    def answered(*arguments):
        assert main([*arguments, "--json"]) == 0
        return json.loads(capfd.readouterr().out)

    return answered


@pytest.fixture
def refusal(capfd):
    def refused(*arguments):
        assert main(list(arguments)) == 2
        captured = capfd.readouterr()
        assert captured.out == "" and "Traceback" not in captured.err
        assert captured.err.startswith("mucd: error: ") and captured.err.count("\n") == 1
        return captured.err

    return refused
