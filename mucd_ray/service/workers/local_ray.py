"""A Ray of one's own, for one command: it starts wherever the folders, the CPUs and the environment of this process allow it, and says what was in the way."""

import contextlib
import os
import resource
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ray

from mucd_ray.errors import MucdError

# sun_path in sys/un.h holds this many bytes, and a zero (macOS: 103).
SOCKET_PATH = 107 if sys.platform == "linux" else 103
# What Ray appends to its folder; process ids have at most seven digits.
LONGEST_SOCKET = len("/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
# What Ray, or a library in its processes, reads and may fail on.
SUSPECTS = ("TMPDIR", "HOME", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH")
# What this process may be given, and its Ray does not start with, or its engines do not compile.
OWN = ("PYTHONWARNINGS", "PYTHONOPTIMIZE", "NUMBA_DISABLE_JIT")
HARMLESS = {"RAY_USAGE_STATS_ENABLED", "RAY_DEDUP_LOGS_SKIP_REGEX", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_grpc_client_keepalive_time_ms", "RAY_grpc_client_keepalive_timeout_ms"}
# Of the shell, which Ray's files, or its store of objects, may not keep to.
LIMITS = {"ulimit -f": resource.RLIMIT_FSIZE, "ulimit -v": resource.RLIMIT_AS}
TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@contextlib.contextmanager
def local_ray(**options) -> Iterator[None]:
    """A local Ray, stopped at the end; `options` are those of `ray.init`.

    Raises:
        MucdError: it does not start: why, and which variable of the environment brought it.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_folder())
        _give_token()
        # Ray's processes live as long, and do not end by themselves where only some of them could be started.
        stack.callback(ray.shutdown)
        _start(folder, options)
        if ray.cluster_resources().get("CPU", 0) < 1:
            # Ray rounds a container's share of a CPU down, and without one every trainer would wait for ever.
            print("mucd: this process has less than a whole CPU (a cgroup's quota, say): one trainer shares what there is", file=sys.stderr)
            ray.shutdown()
            _start(folder, options | {"num_cpus": 1})
        yield


def _start(folder: str | None, options: dict) -> None:
    # Warnings as errors, no texts of documentation, nothing compiled: the user wants it of this process.
    own = {name: os.environ.pop(name) for name in OWN if name in os.environ}
    # Ray may write a token file, which is nobody else's business.
    mask = os.umask(0o077)
    try:
        ray.init(address="local", include_dashboard=False, _temp_dir=folder, **options)
    except Exception as error:  # Ray raises bare ones, too
        text = " ".join(str(error).split())[:300]
        raise MucdError(f"a local Ray does not start ({text}): {_remedy(text)}") from None
    finally:
        os.umask(mask)
        os.environ.update(own)


def _remedy(text: str) -> str:
    """`text`: what Ray says."""
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return "RAY_USE_TLS asks for TLS, which a Ray on this machine alone does not need: unset it, or set the RAY_TLS_ files"
    named = [name for name in TOKENS if os.environ.get(name)]
    if named and "token" in text.lower():
        return f"unset {named[-1]}, and it gets a token of its own"
    limits = [name for name, number in LIMITS.items() if resource.getrlimit(number)[0] != resource.RLIM_INFINITY]
    if limits:
        return f"its processes are limited by {' and '.join(limits)}: lift that (unlimited), or --address joins a Ray that runs elsewhere"
    given = [name for name in os.environ if (name.startswith("RAY_") and name not in HARMLESS) or name in SUSPECTS]
    return f"mend this, or look at what it reads from the environment ({', '.join(sorted(given)) or 'nothing unusual'}); --address joins a Ray that runs elsewhere"


@contextlib.contextmanager
def _folder() -> Iterator[str | None]:
    """Where Ray puts its sockets, logs and spilled objects: None for its default, or a private folder that is removed at the end, where the default will not do."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    default = Path(os.environ[name] if name else "/tmp") / "ray"
    if len(os.fsencode(default)) + LONGEST_SOCKET > SOCKET_PATH:
        why = "is too long for the paths of its sockets"
    elif not str(default).isascii():
        why = "is not ASCII, and Ray takes no other path"
    elif not _is_writable(default):
        why = "cannot be written"
    else:
        yield None
        return
    named = f"{name}={os.environ[name]}" if name else str(default)
    for place in SHORT_FOLDERS:
        with contextlib.suppress(OSError):
            # For its owner alone; Ray opens its own folder to everybody, inside this one.
            private = tempfile.mkdtemp(prefix="mucd-", dir=place)
            break
    else:
        raise MucdError(f"a local Ray does not start: {named} {why}, and so are {', '.join(SHORT_FOLDERS)}: set TMPDIR to a short folder that can be written")
    print(f"mucd: {named} {why}: Ray's files lie in {private} until it ends", file=sys.stderr)
    try:
        yield f"{private}/ray"
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in it, or it can be made."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK | os.X_OK)
    return False


def _give_token() -> None:
    """A token for this Ray alone where the home folder takes no files; Ray writes one there otherwise."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or any(os.environ.get(name) for name in TOKENS):
        return
    try:
        token = Path.home() / ".ray" / "auth_token"
        if token.is_absolute():
            token.parent.mkdir(parents=True, exist_ok=True)
        usable = token.is_absolute() and (os.access(token, os.R_OK) if token.exists() else os.access(token.parent, os.W_OK | os.X_OK))
    except (OSError, RuntimeError):  # the latter: there is no home
        usable = False
    if not usable:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        print(f"mucd: HOME={os.environ.get('HOME', '')} takes no files (.ray/auth_token): Ray gets a token for this command alone", file=sys.stderr)
