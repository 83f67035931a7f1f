"""Policies from outside: whatever a trainer returned as one function of one observation, and as bytes that can be stored. Only for the process of a learner
(nursery.py): the bytes are an attacker's, and so is what they become.

Read are TorchScript and ONNX, by content, each after its text or its graph has been looked at: nothing that names a file or a foreign operator is loaded.
"""

import io
import os
import re
import stat
import warnings
import zipfile
from collections.abc import Callable

import gymnasium
import numpy as np

from mucd_ray.data.spaces import shape_of
from mucd_ray.learn.scores import components_of, scores_of, width_of

MOST_BYTES = 32 << 20
# Of a TorchScript archive, unpacked.
MOST_UNPACKED = 4 * MOST_BYTES
TORCHSCRIPT = b"PK\x03\x04"
# What TorchScript may not say: operators that read or write files, foreign ones, and code that runs while it is loaded.
FORBIDDEN = re.compile(rb"\b(from_file|torch\.save|torch\.load|__setstate__|ops\.(?!prim\b|aten\b)\w+)")
# What torch.jit.save writes: torch finds entries by names in any case.
ENTRY = re.compile(r"[^/]+/(version|byteorder|\.format_version|\.storage_alignment|\.data/[\w.]+|(data|constants|traced_inputs)(\.pkl|/\d+)|code/[\w./]+\.(py|debug_pkl))")
# Of the operators that its graphs are made of: the namespaces, and words in a name that reach beyond the process or hide other graphs.
OPERATOR, BEYOND = re.compile(r"(aten|prim)::\w+"), re.compile(r"save|load|file|rpc|fork|Closure|Call|Python", re.IGNORECASE)
DOMAINS = {"", "ai.onnx", "ai.onnx.ml"}

# One observation [1, *shape] -> scores [A] or unclipped actions [k]; raises, or returns another number of them, where it fails.
Act = Callable[[np.ndarray], np.ndarray]


def policy_of(returned, observation_space: gymnasium.Space, action_space: gymnasium.Space) -> tuple[Act, bytes]:
    """(how it acts, its bytes or b"" where it cannot be stored) of what a trainer returned: an object with `act`, a torch module, TorchScript or ONNX as bytes or
    as the path of a file, or an ONNX model.

    Raises:
        Exception: it is none of these, or cannot be read.
    """
    if isinstance(returned, str | os.PathLike):
        returned = read_policy_file(returned)
    if callable(getattr(returned, "SerializeToString", None)):
        returned = returned.SerializeToString()
    if isinstance(returned, bytes | bytearray):
        return from_bytes(bytes(returned), action_space), bytes(returned)
    if callable(getattr(returned, "act", None)):
        return lambda observation: _preferred(np.asarray(returned.act(observation)), action_space, may_score=False), b""
    if callable(returned) and any(kind.__module__.startswith("torch.") for kind in type(returned).__mro__):
        return _from_module(returned, observation_space, action_space)
    raise TypeError(f"the trainer returned a {type(returned).__name__}: return an object with act(observations), a torch module, or TorchScript or ONNX as bytes or a file's path")


def read_policy_file(path) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= MOST_BYTES:
            raise ValueError(f"the policy's file has {status.st_size:,} bytes or is no regular one: at most {MOST_BYTES:,} are read")
        return file.read(MOST_BYTES + 1)


def from_bytes(content: bytes, action_space: gymnasium.Space) -> Act:
    """Raises Exception where they are no TorchScript and no ONNX that may be loaded."""
    if len(content) > MOST_BYTES:
        raise ValueError(f"the policy has {len(content):,} bytes: at most {MOST_BYTES:,} are read")
    return (_torchscript if content.startswith(TORCHSCRIPT) else _onnx)(content, action_space)


def _preferred(result: np.ndarray, space: gymnasium.Space, may_score: bool = True) -> np.ndarray:
    """What a policy answered to one observation as `outputs` of `evaluate/policies.py` [A or k]: an action as the space counts them, or scores [A] of floats."""
    if isinstance(space, gymnasium.spaces.Discrete):
        if may_score and result.dtype.kind == "f" and result.size == space.n:
            return result.reshape(-1).astype(np.float64)
        if result.size != 1 or result.dtype.kind not in "iub":
            raise ValueError(f"it answered {result.dtype} {result.shape} to one observation: one action as a whole number is wanted" + (f", or {space.n} scores" if may_score else ""))
        action = int(result.reshape(()))
        if not space.start <= action < space.start + space.n:
            raise ValueError(f"it answered action {action}: {space.start}..{space.start + space.n - 1} are there")
        return scores_of(np.array(action - int(space.start)), int(space.n))
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        components = components_of(space)
        if may_score and result.dtype.kind == "f" and result.size == width_of(space):
            return result.reshape(-1).astype(np.float64)
        if result.size != len(components) or result.dtype.kind not in "iub":
            raise ValueError(f"it answered {result.dtype} {result.shape} to one observation: {len(components)} whole numbers are wanted" + (f", or {width_of(space)} scores" if may_score else ""))
        values = result.reshape(-1)
        if ((values < 0) | (values >= space.nvec)).any():
            raise ValueError(f"it answered the action {values.tolist()!s:.100}: its numbers are counted from 0, and {space.nvec.tolist()!s:.100} values are there")
        return np.concatenate([scores_of(np.array(value), count) for value, count in zip(values.tolist(), components)])
    if result.size != np.prod(shape_of(space)) or result.dtype.kind not in "fiu":
        raise ValueError(f"it answered {result.dtype} {result.shape} to one observation: an action of shape {space.shape} is wanted")
    return result.reshape(-1).astype(np.float64)


# torch


def _from_module(module, observation_space: gymnasium.Space, action_space: gymnasium.Space) -> tuple[Act, bytes]:
    """A module acts as the TorchScript that it becomes; one that cannot become any acts by itself."""
    import torch

    module = module.eval().cpu()
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # Of control flow that a trace would freeze.
            warnings.simplefilter("error", torch.jit.TracerWarning)
            torch.jit.save(module if isinstance(module, torch.jit.ScriptModule) else _scripted(module, observation_space), file)
        return from_bytes(file.getvalue(), action_space), file.getvalue()
    except Exception:
        return _torch_act(module, action_space), b""


def _scripted(module, observation_space: gymnasium.Space):
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return torch.jit.script(module)
        except Exception:  # of any kind: it reads sources
            example = torch.from_numpy(np.zeros((1, *shape_of(observation_space)), given_dtype(observation_space)))
            return torch.jit.trace(module, example, check_trace=False)


def given_dtype(observation_space: gymnasium.Space) -> np.dtype:
    """In which numbers a policy is given observations: float32, or the space's own where these are no floats."""
    dtype = observation_space.dtype
    return np.dtype(np.float32) if dtype is None or dtype.kind == "f" else dtype


def _torch_act(module, action_space: gymnasium.Space) -> Act:
    import torch

    torch.set_num_threads(1)

    def act(observation: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return _preferred(module(torch.from_numpy(observation)).numpy(), action_space)

    return act


def _torchscript(content: bytes, action_space: gymnasium.Space) -> Act:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if len({entry.filename for entry in entries}) < len(entries) or sum(entry.file_size for entry in entries) > MOST_UNPACKED:
            raise ValueError("it is no TorchScript archive as torch writes them")
        for entry in entries:
            if not ENTRY.fullmatch(entry.filename):
                raise ValueError(f"it is no TorchScript archive as torch writes them: {entry.filename[:60]!r} is in it")
            text = archive.read(entry) if entry.filename.endswith(".py") else b""
            # Blanks may stand between words.
            if found := FORBIDDEN.search(text) or FORBIDDEN.search(b"".join(text.split())):
                raise ValueError(f"its TorchScript says {found[0].decode()}, which is not allowed in a policy")
    import torch

    module = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
    _check_graphs(module)
    return _torch_act(module, action_space)


def _check_graphs(module) -> None:
    """Raise ValueError unless all that a module's methods and hooks do, in whatever words, are torch's operators within the process."""
    import torch

    waiting = []
    for part in module.modules():
        methods = [part._c._get_method(name) for name in part._c._method_names()]
        for method in (*methods, *part._c._get_forward_hooks(), *part._c._get_forward_pre_hooks()):
            graph = method.graph.copy()
            torch._C._jit_pass_inline(graph)
            waiting.append(graph)
    seen = []  # nodes and blocks do not outlive the graph they are of
    while waiting:
        seen.append(waiting.pop())
        for node in seen[-1].nodes():
            if not OPERATOR.fullmatch(node.kind()) or BEYOND.search(node.kind()):
                raise ValueError(f"its TorchScript does {node.kind()}, which is not allowed in a policy")
            waiting += node.blocks()
            for name in node.attributeNames():
                waiting += [node.g(name)] if node.kindOf(name) == "g" else node.gs(name) if node.kindOf(name) == "gs" else []


# ONNX


def _onnx(content: bytes, action_space: gymnasium.Space) -> Act:
    import onnx
    import onnxruntime

    model = onnx.load_model_from_string(content)
    _check_onnx(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64, "tensor(int32)": np.int32}[given.type]
    answered = session.get_outputs()[0].name

    def act(observation: np.ndarray) -> np.ndarray:
        return _preferred(np.asarray(session.run([answered], {given.name: observation.astype(dtype)})[0]), action_space)

    return act


def _check_onnx(model) -> None:
    import onnx

    if foreign := {entry.domain for part in (model, *model.functions) for entry in part.opset_import} - DOMAINS - {function.domain for function in model.functions}:
        raise ValueError(f"its operators are of {', '.join(sorted(foreign))}: only ONNX's own are read")
    # Every message in it, by its descriptors: tensors lie in graphs, attributes of nodes, functions and sparse initialisers.
    waiting = [model]
    while waiting:
        message = waiting.pop()
        if isinstance(message, onnx.TensorProto) and (message.external_data or message.data_location != onnx.TensorProto.DEFAULT):
            raise ValueError("its numbers are in other files: only a model in one piece is read")
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting += value if not hasattr(value, "ListFields") else [value]
