"""Encoders from outside: a file of the user's, ONNX or TorchScript, whose outputs take the place of observations.

The file is the user's own word, as a trainer or a card is: it was named on the command line, and what it says is run in this process. One that lies
in a run folder is not: it is loaded only where the user names a file of the same content (docs/files.md). A poisoned dataset cannot choose it.
"""

import hashlib
import io
import warnings

import numpy as np

from mucd_ray.data.environments.encoding import ENCODERS, tried
from mucd_ray.errors import MucdError
from mucd_ray.files import printable, read_file

MOST_ENCODER_BYTES = 1 << 28
TORCHSCRIPT = b"PK\x03\x04"
# Of an ONNX model's input -> what observations are given as.
INPUTS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(uint8)": np.uint8, "tensor(int32)": np.int32, "tensor(int64)": np.int64}


def read_encoder(path) -> bytes:
    """The content of an encoder's file.

    Raises:
        MucdError: it is missing, no regular file, or has more than MOST_ENCODER_BYTES.
    """
    try:
        return read_file(path, MOST_ENCODER_BYTES)
    except OSError as error:
        raise MucdError(f"encoder {path} cannot be read ({error.strerror}): give an ONNX or TorchScript file") from None


def encoder_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def load_encoder(content: bytes, observation_shape: tuple[int, ...]) -> tuple[str, int]:
    """Load an encoder into this process -> (SHA-256 of its file, number of its outputs), as cards name it.

    It is tried on made-up observations: chance and a state that outputs depend on are refused.

    Raises:
        MucdError: neither ONNX in one piece nor TorchScript; it takes no [1, *observation_shape], or gives no numbers.
    """
    name, shape = f"the encoder {encoder_hash(content)[:16]}...", tuple(observation_shape)
    try:
        function = (_torchscript if content.startswith(TORCHSCRIPT) else _onnx)(content)
        outputs = tried(function, name, shape)
    except MucdError:
        raise
    except Exception as error:  # the code of any model, and of its readers
        raise MucdError(f"{name} cannot be run ({printable(error) or type(error).__name__}): give ONNX in one piece or TorchScript that takes one observation as [1, {', '.join(map(str, shape))}]") from None
    ENCODERS[encoder_hash(content)] = function
    return encoder_hash(content), outputs


def _torchscript(content: bytes):
    import torch

    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        module = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()

    def encode(observation: np.ndarray) -> np.ndarray:
        # How sums are split among threads would change their rounding.
        torch.set_num_threads(1)
        with torch.no_grad():
            return module(torch.from_numpy(observation.astype(np.float32)[None])).numpy().astype(np.float32).reshape(-1)

    return encode


def _onnx(content: bytes):
    try:
        import onnxruntime
    except ImportError:
        raise MucdError("onnxruntime is missing: encoders in ONNX need an extra, pip install 'mucd_ray[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Numbers that lie in other files would be looked for here, and are in no certificate's hash.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/dev/null")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    dtype = INPUTS[given.type]
    output = session.get_outputs()[0].name

    def encode(observation: np.ndarray) -> np.ndarray:
        return np.asarray(session.run([output], {given.name: observation.astype(dtype)[None]})[0]).astype(np.float32).reshape(-1)

    return encode
