"""A trainer from outside as plain data: what a certificate says of a learner that is not the package's."""

import math
import re
import shlex
from dataclasses import asdict, dataclass, fields

from mucd_ray.errors import MucdError
from mucd_ray.files import printable
from mucd_ray.plugins import NAME

FUNCTION = re.compile(r"(?:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*|[^:]+\.py):[A-Za-z_]\w*")
LONGEST_NAME = 1000
LEAST_SECONDS, MOST_SECONDS = 0.1, 1e7
LEAST_MEMORY, MOST_MEMORY = 0.5, 1e6
# In which a command finds its bag; the first one is not written down.
BAG_FORMATS = ("npz", "minari", "parquet")


@dataclass(frozen=True, kw_only=True)
class Outside:
    """A trainer from outside.

    Attributes:
        kind: "function", "command" or "plug-in".
        name: "package.module:function" or "path/to/file.py:function"; a command with {bag}, {out} and maybe {seed} and {device}; the name of a plug-in.
        sha256: of the file that holds the function, or over the hashes of the files that the command names; that of the plug-in (plugins.py).
        seconds: that a training may take, and once more that its policy may take in all to act: public, and part of the learner.
        memory: GB that a learner and all that it starts may take: public, and part of the learner.
        bag_format: in which a command finds its bag, one of BAG_FORMATS.

    Raises:
        MucdError: a field is outside its range.
    """

    kind: str
    name: str
    sha256: str
    seconds: float = 600.0
    memory: float = 4.0
    bag_format: str = BAG_FORMATS[0]

    def __post_init__(self):
        if self.kind not in ("function", "command", "plug-in"):
            raise MucdError(f"trainer of kind {self.kind!r:.60} is unknown: use function, command or plug-in")
        check_name(self.kind, self.name)
        if not isinstance(self.sha256, str) or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise MucdError(f"trainer {self.name}: {self.sha256!r:.100} is no SHA-256")
        if self.bag_format not in BAG_FORMATS:
            raise MucdError(f"--bag-format {self.bag_format!r:.60} is unknown: use one of {', '.join(BAG_FORMATS)}")
        if self.kind != "command" and self.bag_format != BAG_FORMATS[0]:
            raise MucdError(f"--bag-format {self.bag_format} is for --trainer-command: a function is given arrays")
        for name, least, most in (("seconds", LEAST_SECONDS, MOST_SECONDS), ("memory", LEAST_MEMORY, MOST_MEMORY)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not (math.isfinite(value) and least <= value <= most):
                raise MucdError(f"--train-{name} {value!r:.60} is outside [{least:g}, {most:g}]: use one of these")

    @property
    def option(self) -> str:
        """That of the command line that names it."""
        return option_of(self.kind)


def option_of(kind: str) -> str:
    return {"command": "--trainer-command", "evaluator": "--evaluator"}.get(kind, "--trainer")


def check_name(kind: str, name: str) -> None:
    """Raise MucdError where no trainer of this kind, or evaluator, can be called so."""
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
        raise MucdError(f"{option_of(kind)} {printable(name)!r:.100} must be a printable text of at most {LONGEST_NAME} characters")
    if kind == "plug-in":
        if not NAME.fullmatch(name):
            raise MucdError(f"{option_of(kind)} {name} is no name of a plug-in: such names have letters, digits and the signs . _ - /")
        return
    if kind != "command":
        if not FUNCTION.fullmatch(name):
            raise MucdError(f"{option_of(kind)} {name} is no name of a function: use package.module:function or path/to/file.py:function")
        return
    try:
        words = shlex.split(name)
    except ValueError as error:
        raise MucdError(f"--trainer-command {name} is no command ({error}): quote it as for a shell") from None
    missing = [place for place in ("{bag}", "{out}") if not any(place in word for word in words)]
    if missing:
        raise MucdError(f'--trainer-command {name} lacks {missing[0]}: use a command such as "python train.py {{bag}} {{out}} {{seed}}"')


def to_values(trainer: Outside) -> dict:
    """Its fields as JSON values; the format of bags where it is not the usual one."""
    values = asdict(trainer)
    return values if trainer.bag_format != BAG_FORMATS[0] else {name: value for name, value in values.items() if name != "bag_format"}


def from_values(values) -> Outside:
    """A trainer from its fields as JSON values, which anybody may have written. Raises MucdError."""
    names = [field.name for field in fields(Outside) if field.name != "bag_format"]
    if not isinstance(values, dict) or set(values) - {"bag_format"} != set(names) or values.get("bag_format", "") == BAG_FORMATS[0]:
        raise MucdError(f"trainer must be null or an object with exactly the fields {', '.join(names)}")
    return Outside(**values)
