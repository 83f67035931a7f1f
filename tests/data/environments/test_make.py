import subprocess
import sys

import pytest

from mucd_ray.data.environments.make import make_environment
from mucd_ray.errors import MucdError

RECORD_WITHOUT = "import sys; sys.modules[{module!r}] = None; from mucd_ray.cli import main; sys.exit(main(['record', {env_id!r}, '--dataset', 'x-v0']))"


@pytest.mark.parametrize(
    ("env_id", "module", "extra"),
    [("ALE/Freeway-v5", "ale_py", "atari"), ("LunarLander-v3", "Box2D", "box2d"), ("HalfCheetah-v5", "mujoco", "mujoco"), ("highway-fast-v0", "highway_env", "highway")],
)
def test_a_missing_extra_is_one_line_with_the_pip_command(minari_root, env_id, module, extra):
    done = subprocess.run([sys.executable, "-c", RECORD_WITHOUT.format(module=module, env_id=env_id)], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"mucd: error: environment '{env_id}' needs {module}") and done.stderr.endswith(f"in a clone of this project run pip install '.[{extra}]' -c constraints.txt\n")


def test_mujoco_leaves_no_log_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_environment("HalfCheetah-v5").close()
    assert not list(tmp_path.iterdir())


def test_arguments_that_an_environment_refuses_are_named():
    with pytest.raises(MucdError, match="CartPole-v1.*colour"):
        make_environment("CartPole-v1", colour="red")


@pytest.mark.parametrize(("env_id", "arguments"), [("a:b:CartPole-v1", {}), ("LunarLander-v3", {"gravity": 1}), ("HalfCheetah-v5", {"xml_file": "/no/such/file.xml"})])
def test_whatever_an_environment_raises_is_one_error(env_id, arguments):
    with pytest.raises(MucdError, match=f"environment '{env_id}' cannot be made"):
        make_environment(env_id, **arguments)
