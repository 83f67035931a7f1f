"""Policies as files are an attacker's: nothing that names a file or a foreign operator is loaded."""

import io
import zipfile

import gymnasium
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mucd_ray.learn.trainers import artifacts
from mucd_ray.learn.trainers.artifacts import from_bytes, policy_of

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
DISCRETE, BOX = gymnasium.spaces.Discrete(3, start=-1), gymnasium.spaces.Box(-1, 1, (2,))
SEEN = gymnasium.spaces.Box(-np.inf, np.inf, (4,))
ROW = np.arange(4, dtype=np.float32)[None]


def linear(outputs=3, domain="", external=None, doubles=False, **changes):
    kind = np.float64 if doubles else np.float32
    weight = numpy_helper.from_array(np.eye(4, outputs, dtype=kind), "w")
    if external:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=external)
    element = TensorProto.DOUBLE if doubles else TensorProto.FLOAT
    node = helper.make_node("MatMul", ["x", "w"], ["y"], domain=domain)
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", element, ["n", 4])], [helper.make_tensor_value_info("y", element, ["n", outputs])], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)] + ([helper.make_opsetid(domain, 1)] if domain else []), ir_version=10)


def script(function):
    class Policy(torch.nn.Module):
        def forward(self, x):
            return function(x)

    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(Policy(), torch.zeros(1, 4)), file)
    return file.getvalue()


def test_scores_and_actions_are_read_as_they_are():
    for model in (linear(), linear(doubles=True)):
        assert from_bytes(model.SerializeToString(), DISCRETE)(ROW).tolist() == [0, 1, 2]
    assert from_bytes(linear(2).SerializeToString(), BOX)(ROW).tolist() == [0, 1]
    assert from_bytes(script(lambda x: x[:, :3]), DISCRETE)(ROW).tolist() == [0, 1, 2]
    # A whole number is an action as the environment counts them.
    assert from_bytes(script(lambda x: x.argmax(1) - 2), DISCRETE)(ROW).argmax() == 2
    act, content = policy_of(torch.nn.Linear(4, 3), SEEN, DISCRETE)
    assert content.startswith(b"PK") and np.array_equal(act(ROW), from_bytes(content, DISCRETE)(ROW))
    act, content = policy_of(linear(), SEEN, DISCRETE)
    assert content == linear().SerializeToString()


class Folded(torch.nn.Module):
    """Parts within parts, and blocks of blocks."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()), torch.nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            if bool(x.sum() > 0):
                x = -x if bool(x.max() > 1) else x
        return self.layers(x)


def test_modules_of_many_parts_are_stored_and_read_again():
    module = Folded().eval()
    act, content = policy_of(module, SEEN, DISCRETE)
    assert content and np.array_equal(from_bytes(content, DISCRETE)(ROW), act(ROW)) and np.allclose(act(ROW), module(torch.from_numpy(ROW)).detach().numpy()[0])


def test_a_module_whose_trace_would_freeze_its_branches_acts_by_itself():
    class Branching(torch.nn.Module):
        def forward(self, *given):  # which TorchScript does not take
            return given[0][:, :3] if given[0].sum() > 0 else -given[0][:, :3]

    act, content = policy_of(Branching(), SEEN, DISCRETE)
    assert content == b"" and act(ROW).tolist() == [0, 1, 2] and act(-ROW).tolist() == [0, 1, 2]


@pytest.mark.parametrize("content", [
    b"", b"PK\x03\x04", b"garbage", linear(external="/etc/passwd").SerializeToString(), linear(domain="com.evil").SerializeToString(),
    linear().SerializeToString()[:-9],
])  # fmt: skip
def test_what_is_no_policy_is_refused(content):
    with pytest.raises(Exception):
        from_bytes(content, DISCRETE)


def test_external_numbers_are_refused_wherever_they_hide():
    hidden = linear()
    attribute = hidden.graph.node[0].attribute.add(name="hidden", type=onnx.AttributeProto.GRAPH)
    attribute.g.initializer.append(linear(external="x").graph.initializer[0])
    with pytest.raises(ValueError, match="in other files"):
        from_bytes(hidden.SerializeToString(), DISCRETE)


def test_torchscript_that_reads_files_or_runs_while_it_is_loaded_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(12))
    name = str(tmp_path / "secret")
    reading = script(lambda x: x[:, :3] + torch.from_file(name, False, 3))
    with pytest.raises(ValueError, match="from_file"):
        from_bytes(reading, DISCRETE)
    saved = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(script(lambda x: x[:, :3]))) as honest, zipfile.ZipFile(saved, "w") as other:
        for entry in honest.infolist():
            content = honest.read(entry)
            other.writestr(entry.filename, content + (b"\ndef __setstate__(self, state): pass\n" if entry.filename.endswith(".py") else b""))
    with pytest.raises(ValueError, match="__setstate__"):
        from_bytes(saved.getvalue(), DISCRETE)


@pytest.mark.parametrize("answer", [np.array([5]), np.array([-2]), np.array([0.5]), np.zeros((1, 3)), np.array(["left"]), np.zeros((0,))])
def test_what_is_no_action_is_a_failure(answer):
    act, _ = policy_of(type("P", (), {"act": lambda self, observations: answer})(), SEEN, DISCRETE)
    with pytest.raises(ValueError):
        act(ROW)


def test_large_files_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "MOST_BYTES", 100)
    (tmp_path / "policy").write_bytes(bytes(200))
    for returned in (tmp_path / "policy", bytes(200), "/dev/zero"):
        with pytest.raises(ValueError):
            policy_of(returned, SEEN, DISCRETE)
