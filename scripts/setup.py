"""Set up ``.venv`` from the lock files, or do nothing in milliseconds when it is up to date.

    python3 scripts/setup.py

Standard library only, and plain enough in its syntax that an old Python can still say that it is too old.
``CMAKE_ARGS`` chooses how the llama.cpp binding is built. It is remembered: unset keeps what is there, another value
(an empty one too) builds again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MINIMUM = (3, 11)
BINDING = "llama-cpp-python"
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
BUILD_LOCK = ROOT / "requirements-build.lock"
LOCK = ROOT / "requirements.lock"
LOG = VENV / "setup.log"
MUTEX = VENV / "setup.lock"
STAMP = VENV / "setup.json"
BUILT = VENV / "setup.binding.json"
PIP = ("-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-build-isolation")
STEP = re.compile(r"\[\d+/\d+\] \S.*|^ *(?:Collecting|Downloading|Building|Installing) \S.*", re.MULTILINE)
HINTS = (
    (r"No space left on device", "the disk is full"),
    (r"Killed signal|: Killed", "too little memory for the compiler: set CMAKE_BUILD_PARALLEL_LEVEL=1"),
    (r"DO NOT MATCH THE HASHES", "a package is not the one in the lock file: an index or a proxy serves another"),
    (r"Temporary failure in name|Connection refused|is unreachable|timed out", "the package index cannot be reached"),
    (r"No matching distribution found", "the index has not got that version for this Python"),
    (r"CMake Error", "CMake failed: look for 'CMake Error' in the log, and at CMAKE_ARGS"),
)


class SetupError(Exception):
    """Set-up cannot go on; the message says what to do."""


def main() -> int:
    """Bring ``.venv`` up to date and return the exit code."""
    try:
        use_supported_python()
        if up_to_date():
            return 0
        with only_one():
            if not up_to_date():
                set_up()
    except SetupError as e:
        print(f"setup: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: stopped; the next call goes on from here", file=sys.stderr)
        return 130
    return 0


def use_supported_python() -> None:
    """Go on with a newer interpreter of the machine when this one is too old."""
    if sys.version_info >= MINIMUM:
        return
    for name in ("python3.13", "python3.12", "python3.11"):
        found = shutil.which(name)
        # A version manager's shim is on the path even where its version is switched off.
        if found and subprocess.call([found, "-c", ""], stderr=subprocess.DEVNULL) == 0:
            os.execv(found, [found, *sys.argv])
    raise SetupError(
        "Python {}.{} or newer is needed, this is {} ({}). Debian 12 and later have it: "
        "apt install python3 python3-venv".format(*MINIMUM, sys.version.split()[0], sys.executable)
    )


def set_up() -> None:
    """Create or update the environment. The stamp is written last: an interrupted run is done again."""
    started = time.monotonic()
    args = cmake_args()
    say("setting up .venv from the lock files (log: .venv/setup.log)")
    STAMP.unlink(missing_ok=True)
    LOG.write_text("")
    if not venv_usable():
        create_venv()
    rebuild = binding_differs(args)
    if rebuild or not list(VENV.glob("lib/python*/site-packages/llama_cpp")):
        require_compiler()
    # The build tools come first: without build isolation they must be there, so that their versions are locked too.
    pip("-r", str(BUILD_LOCK), "--require-hashes")
    if rebuild:
        rebuild_binding(args)
    pip("-v", "-r", str(LOCK), "--require-hashes", CMAKE_ARGS=args)
    write(BUILT, {"pin": binding_requirement().split()[0], "cmake_args": args})
    pip("--no-deps", "-e", ".")
    write(STAMP, fingerprint(args))
    say(f"ready after {time.monotonic() - started:.0f} s")


def fingerprint(args: str) -> dict[str, str]:
    """What the environment was made from. Scripts hold absolute paths, so the folder is part of it."""
    content = hashlib.sha256()
    for path in (BUILD_LOCK, LOCK, ROOT / "pyproject.toml"):
        content.update(path.read_bytes())
    return {"content": content.hexdigest(), "python": sys.version, "root": str(ROOT), "cmake_args": args}


def up_to_date() -> bool:
    """Whether the stamp is of just these inputs."""
    return os.access(PYTHON, os.X_OK) and read(STAMP) == fingerprint(cmake_args())


def cmake_args() -> str:
    """The build settings wanted: the variable, and where it is unset those the binding was built with."""
    wanted = os.environ.get("CMAKE_ARGS")
    return read(BUILT).get("cmake_args", "") if wanted is None else wanted


def binding_differs(args: str) -> bool:
    """Whether pip would take a binding that was built with other settings: it knows wheels by version only."""
    built = read(BUILT)
    return args != built.get("cmake_args", "") or (args != "" and built.get("pin") != binding_requirement().split()[0])


def binding_requirement() -> str:
    """The binding's lines of the lock file."""
    found = re.search(rf"^{BINDING}==(?:.*\\\n)*.*\n", LOCK.read_text(), re.MULTILINE)
    if found is None:
        raise SetupError(f"{LOCK.name} does not pin {BINDING}; run `make lock`")
    return found.group()


def rebuild_binding(args: str) -> None:
    """Build the binding with these settings, past pip's cache, which holds the wheel of the default settings."""
    write(BUILT, {"cmake_args": "unknown: a rebuild was interrupted"})
    only = VENV / "setup.binding.txt"
    only.write_text(binding_requirement())
    past_cache = ("--no-cache-dir", "--no-binary", BINDING) if args else ()
    pip("-v", "-r", str(only), "--require-hashes", "--no-deps", "--force-reinstall", *past_cache, CMAKE_ARGS=args)


def require_compiler() -> None:
    """Say what is missing before minutes of downloads, not after."""
    for variable, names in (("CC", ("cc", "gcc", "clang")), ("CXX", ("c++", "g++", "clang++"))):
        if variable not in os.environ and not any(map(shutil.which, names)):
            raise SetupError(
                f"no {'C++' if variable == 'CXX' else 'C'} compiler found ({', '.join(names)}): "
                "llama.cpp is compiled once. On Debian: apt install build-essential"
            )


def venv_usable() -> bool:
    """Whether ``.venv`` was made in this folder (scripts hold absolute paths), for this Python, and has pip."""
    config = VENV / "pyvenv.cfg"
    if not config.exists() or not any(line.endswith(f" {VENV}") for line in config.read_text().splitlines()):
        return False
    probe = "import pip, sys; print(*sys.version_info[:2])"
    with contextlib.suppress(OSError):
        answer = subprocess.run([str(PYTHON), "-c", probe], capture_output=True, text=True, check=False).stdout
        return answer.split() == [str(n) for n in sys.version_info[:2]]
    return False


def create_venv() -> None:
    """Make the environment anew. Only the files of a running set-up stay."""
    try:
        import ensurepip  # noqa: F401 (Debian packs it apart, and venv fails late without it)
    except ImportError:
        raise SetupError(
            f"this Python ({sys.executable}) has no ensurepip. "
            f"On Debian: apt install python3-venv (or python3.{sys.version_info[1]}-venv)"
        ) from None
    for path in VENV.iterdir():
        if path not in (LOG, MUTEX):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    run([sys.executable, "-m", "venv", str(VENV)])


def pip(*args: str, **variables: str) -> None:
    """Install with the environment's own pip."""
    run([str(PYTHON), *PIP, *args], **variables)


def run(command: list[str], **variables: str) -> None:
    """Run a command into the log and show that it lives."""
    path = f"{PYTHON.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")} | {"PATH": path} | variables
    with LOG.open("ab") as log:
        start = log.seek(0, os.SEEK_END)
        # The lock's descriptor goes along (close_fds): should this process be killed, the next one waits for its pip.
        child = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, close_fds=False
        )
        try:
            watch(child, start)
        finally:
            child.terminate()
            child.wait()
    if child.returncode != 0:
        raise SetupError(failure(child.returncode, start))


def watch(child: subprocess.Popen[bytes], start: int) -> None:
    """Wait for the end; one line that changes on a terminal, one line each quarter of a minute elsewhere."""
    began = shown = time.monotonic()
    terminal = sys.stdout.isatty()
    told = False
    while True:
        try:
            child.wait(1)
            break
        except subprocess.TimeoutExpired:
            now = time.monotonic()
        doing = last_step(start)
        if not told and doing.startswith(("compiling", f"Building wheel for {BINDING}")):
            told = True
            say("compiling the llama.cpp binding; this takes minutes, once (pip keeps the wheel of the default build)")
        if terminal:
            print(f"\r\033[K{now - began:5.0f} s  {doing}"[:100], end="", flush=True)
        elif now - shown >= 15:
            shown = now
            say(f"{now - began:.0f} s: {doing}")
    if terminal:
        print("\r\033[K", end="", flush=True)


def last_step(start: int) -> str:
    """What pip, or the build it runs, was doing last."""
    with LOG.open("rb") as log:
        log.seek(max(start, log.seek(0, os.SEEK_END) - 20_000))
        text = log.read().decode(errors="replace")
    steps = STEP.findall(text)
    if not steps:
        return "working"
    # Ninja prints the whole command, and the source is its last word.
    compiling = re.match(r"(\[\d+/\d+\]) .*?([^/\s]+)$", steps[-1].strip())
    return "compiling {} {}".format(*compiling.groups()) if compiling else steps[-1].strip()[:80]


def failure(code: int, start: int) -> str:
    """The end of the log and a guess at the cause."""
    text = LOG.read_bytes()[start:].decode(errors="replace")
    tail = "\n".join(f"    {line}" for line in text.splitlines()[-25:])
    hint = next((hint for pattern, hint in HINTS if re.search(pattern, text)), "the log has the whole story")
    return f"a step failed with exit code {code}:\n{tail}\n  {hint} (.venv/setup.log). The same command tries again"


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Let one set-up at a time work on ``.venv``. The kernel frees the lock at death."""
    VENV.mkdir(exist_ok=True)
    with MUTEX.open("ab") as mutex:
        try:
            fcntl.flock(mutex, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up of this folder is running; waiting for it")
            fcntl.flock(mutex, fcntl.LOCK_EX)
        os.set_inheritable(mutex.fileno(), True)
        yield


def read(path: Path) -> dict[str, str]:
    """A record of an earlier run; empty where there is none or it was cut off."""
    try:
        found: dict[str, str] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def write(path: Path, record: dict[str, str]) -> None:
    """Write a record in one step."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record))
    part.replace(path)


def say(text: str) -> None:
    """Tell what is going on, at once also through a pipe."""
    print(f"setup: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
