"""Encoders from outside: functions of one observation at a time, read from ONNX or TorchScript."""

import dataclasses
import io
import os

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mucd_ray.data.environments.cards import EnvironmentCard, card_for
from mucd_ray.data.environments.encoding import ENCODERS
from mucd_ray.errors import MucdError
from mucd_ray.learn.encoders import encoder_hash, load_encoder, read_encoder

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 10


def onnx_encoder(weight=WEIGHT, kind=TensorProto.FLOAT, nodes=None) -> onnx.ModelProto:
    nodes = nodes or [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Tanh", ["z"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", kind, ["n", len(weight)])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "encoder", inputs, outputs, [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def torchscript(module: torch.nn.Module) -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    return file.getvalue()


class Tanh(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.from_numpy(WEIGHT))

    def forward(self, x):
        return torch.tanh(x @ self.weight)


class Centred(Tanh):
    """Mixes the rows of a batch."""

    def forward(self, x):
        return torch.tanh((x - x.mean(0)) @ self.weight + x)


class Counting(Tanh):
    """Remembers what it has seen."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        self.seen += x[0]
        return torch.tanh(self.seen @ self.weight)[None]


class Fussy(Tanh):
    def forward(self, x):
        assert float(x.max()) < 5.0
        return torch.tanh(x @ self.weight)


@pytest.mark.parametrize("content", [onnx_encoder().SerializeToString(), torchscript(Tanh())], ids=["onnx", "torchscript"])
def test_outputs_take_the_place_of_observations(content):
    card = dataclasses.replace(card_for("CartPole-v1").raw(), encoder=load_encoder(content, (4,)))
    assert card.encoder == (encoder_hash(content), 3) and card.width == 3
    assert EnvironmentCard.from_dict(card.to_dict()) == card and card.raw() == card
    assert card.features_source() == {"source": "encoder", "card": "CartPole-v1", "encoder": encoder_hash(content)}
    rows = np.random.default_rng(0).standard_normal((5, 2, 4)).astype(np.float32)
    features = card.features(rows)
    assert features.shape == (5, 2, 3) and features.dtype == np.float32 and np.allclose(features, np.tanh(rows @ WEIGHT), atol=1e-6)
    # Row by row: nothing of another one, not even its rounding.
    rows[3, 1, 2] = np.nan
    poisoned = card.features(rows)
    assert np.isnan(poisoned[3, 1]).all() and np.array_equal(np.delete(poisoned.reshape(10, 3), 7, 0), np.delete(features.reshape(10, 3), 7, 0))


def test_rows_that_a_module_would_mix_do_not_meet():
    class Rows(Centred):
        def forward(self, x):
            return torch.tanh((x - x.mean(0)) @ self.weight)

    card = dataclasses.replace(card_for("CartPole-v1").raw(), encoder=load_encoder(torchscript(Rows()), (4,)))
    assert not card.features(np.ones((3, 4), np.float32)).any()


def test_an_observation_on_which_it_fails_is_no_number():
    card = dataclasses.replace(card_for("CartPole-v1").raw(), encoder=load_encoder(torchscript(Fussy()), (4,)))
    features = card.features(np.array([[0, 0, 0, 1], [0, 0, 0, 9]], np.float32))
    assert np.isfinite(features[0]).all() and np.isnan(features[1]).all()


def test_one_that_is_not_loaded_is_missed():
    card = dataclasses.replace(card_for("CartPole-v1").raw(), encoder=("0" * 64, 3))
    assert card.width == 3
    with pytest.raises(MucdError, match="--encoder FILE"):
        card.features(np.zeros((1, 4)))


def external(tmp_path) -> bytes:
    """A model whose numbers lie in another file, in the folder that the process works in."""
    model = onnx_encoder(np.ones((4, 300), np.float32))
    onnx.save_model(model, str(tmp_path / "model.onnx"), save_as_external_data=True, location="numbers.bin", size_threshold=0)
    return (tmp_path / "model.onnx").read_bytes()


def test_what_is_no_encoder_is_refused(tmp_path, monkeypatch):
    random = [helper.make_node("RandomNormalLike", ["x"], ["y"])]
    foreign = [helper.make_node("Evil", ["x"], ["y"], domain="com.evil")]
    monkeypatch.chdir(tmp_path)
    before = dict(ENCODERS)
    for content, complaint in (
        (b"", "cannot be run"), (b"PK\x03\x04 and no more", "cannot be run"), (b"\x08\x09" + os.urandom(200), "cannot be run"), (external(tmp_path), "cannot be run"),
        (onnx_encoder(nodes=random).SerializeToString(), "in two ways"), (onnx_encoder(nodes=foreign).SerializeToString(), "cannot be run"),
        (onnx_encoder(np.ones((5, 3), np.float32)).SerializeToString(), r"\[1, 4\]"), (torchscript(Counting()), "in two ways"),
    ):
        with pytest.raises(MucdError, match=complaint) as error:
            load_encoder(content, (4,))
        assert "\n" not in str(error.value)
    assert ENCODERS == before
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path / "pipe"):
        with pytest.raises(MucdError, match="missing|regular"):
            read_encoder(path)


@pytest.mark.parametrize("encoder", [("ab", 3), ("0" * 64, 0), ("0" * 64, 2.0), ("0" * 64,), (3, 3)])
def test_bad_descriptions_are_refused(encoder):
    with pytest.raises(MucdError, match="encoder"):
        dataclasses.replace(card_for("CartPole-v1").raw(), encoder=encoder)
