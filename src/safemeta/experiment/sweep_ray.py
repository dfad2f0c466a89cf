"""Jobs on Ray: local processes by default, a cluster by its address.

A worker that dies costs no more than the steps since the last checkpoint of its runs: its job is given to another, as
long as it comes further each time. Workers tell nothing; how far runs are is read from their folders.
"""

import contextlib
import io
import os
import secrets
import shutil
import signal
import socket
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safemeta.experiment.errors import Interrupted, UserError
from safemeta.experiment.jobs import reason
from safemeta.experiment.progress import Quiet
from safemeta.experiment.signals import StopSignals
from safemeta.experiment.sweep_file import Plan, read_plan
from safemeta.experiment.sweep_jobs import SweepJob

INSTALL = "pip install 'safemeta[ray]'"
DEATHS = 3  # in a row, without a checkpoint between them, after which a job is given up
STORE = 80 * 2**20  # bytes of Ray's object store: nearly its least, since nothing but sentences passes through it
POLL = 0.5  # seconds
STARTS = 4  # attempts to start Ray on a machine that is too busy for it
REACH = 10.0  # seconds to wait for a cluster's answer
SOCKETS = 40  # characters of a folder in which Ray's sockets still have names that the system allows
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers use the interpreter that is there, whether uv started it or not
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # without it Ray warns at every start
    "RAY_DEDUP_LOGS": "0",
}


@dataclass(frozen=True)
class Resources:
    """Where jobs are done: so many at a time (None: as many as there is room for), each with so much."""

    address: str | None = None
    workers: int | None = None
    cpus: int = 1
    gpus: float = 0.0

    def remote(self, ray: Any, function: Any) -> Any:
        """A function for a worker that has these."""
        return ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(function)


@dataclass(frozen=True)
class Ended:
    """How a job ended: `failed` is a sentence if it did, `stopped` an exit code; `warnings` are for the user."""

    failed: str | None = None
    stopped: int | None = None
    warnings: tuple[str, ...] = ()


class Warnings(Quiet):
    """Keeps what a user must be warned of."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def warn(self, text: str) -> None:
        self.sentences.append(text)


def work(job: SweepJob, folder: str, resources: Resources) -> Ended:
    """What a worker does. It is stopped by SIGINT, as `ray.cancel` gives it, and then saves what it has."""
    global _program
    reporter = Warnings()
    try:
        import jax

        from safemeta.experiment.compilation import enable_cache

        _choose_processors(resources)
        warning = enable_cache()
        if warning:
            reporter.warn(warning)
        if _program not in (None, job.program):
            jax.clear_caches()  # else memory grows by some hundred megabytes with each program
        _program = job.program
        with warnings.catch_warnings(record=True) as found:
            job.work(Path(folder), reporter)
        sentences = [*reporter.sentences, *(str(each.message) for each in found if each.category is UserWarning)]
        return Ended(warnings=tuple(dict.fromkeys(sentences)))
    except KeyboardInterrupt:
        return Ended(stopped=130)
    except Interrupted as problem:
        return Ended(stopped=problem.exit_code)
    except Exception as problem:
        return Ended(failed=reason(problem), warnings=tuple(reporter.sentences))


_program: str | None = None  # whose compiled code this worker holds
_TOKEN = secrets.token_hex(32)  # of all local sessions of this process, since Ray remembers the first one


def examine(file: str, content: bytes, resources: Resources) -> Plan | UserError:
    """What another worker does before all: read the plan, with every algorithm and task made."""
    _choose_processors(resources)
    try:
        return read_plan(file, content)
    except UserError as problem:
        return problem


def _choose_processors(resources: Resources) -> None:
    """Keep to as many threads as the worker has cores, and JAX off graphics cards that are not the worker's."""
    import jax

    from safemeta.sim.threads import THREADS

    os.environ.setdefault(THREADS, str(resources.cpus))
    if resources.gpus == 0:
        jax.config.update("jax_platforms", "cpu")
    elif resources.gpus < 1:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 * resources.gpus:.3f}")


class Pool:
    """Does jobs in a folder, in a session of Ray. `told` is called with a job and its state, `note` with sentences."""

    def __init__(
        self,
        ray: Any,
        resources: Resources,
        folder: Path,
        told: Callable[[SweepJob, str], None],
        note: Callable[[str], None],
    ):
        self.ray, self.resources, self.folder, self.told, self.note = ray, resources, folder, told, note
        self.failed: dict[str, str] = {}
        self._deaths: dict[str, tuple[int, int]] = {}  # job -> how often in a row, and where it would have gone on

    def run(self, jobs: Sequence[SweepJob]) -> dict[str, str]:
        """All jobs; names of those that failed, with the reason. `Interrupted` where it is stopped."""
        with StopSignals() as signals, connected(self.ray):
            return self._run(jobs, signals)

    def _run(self, jobs: Sequence[SweepJob], signals: StopSignals) -> dict[str, str]:
        remote, waiting, running = self.resources.remote(self.ray, work), deque(jobs), {}
        while (waiting or running) and signals.received is None:
            while waiting and len(running) < self._room():
                job = waiting.popleft()
                running[remote.remote(job, str(self.folder), self.resources)] = job
            self._listen(running, waiting)
        if signals.received is None:
            return self.failed
        for reference in running:
            self.ray.cancel(reference)
        while running:
            self._listen(running, deque(), "stopping")
        raise Interrupted("Stopped.", exit_code=128 + signals.received)

    def _room(self) -> int:
        """How many jobs may be done at the same time."""
        if self.resources.workers is not None:
            return self.resources.workers
        there = self.ray.cluster_resources()
        room = there.get("CPU", 0) // self.resources.cpus
        if self.resources.gpus:
            room = min(room, there.get("GPU", 0) // self.resources.gpus)
        return max(1, int(room))

    def _listen(self, running: dict[Any, SweepJob], waiting: deque[SweepJob], state: str = "running") -> None:
        """Wait a moment; take what has ended, and tell of what goes on."""
        ended, _ = self.ray.wait(list(running), num_returns=len(running), timeout=POLL)
        for reference in ended:
            job = running.pop(reference)
            result = self._result(reference)
            if result is None and state == "running" and self._another_try(job):
                waiting.appendleft(job)
                self.told(job, "waiting")
                continue
            for sentence in result.warnings if result is not None else ():
                self.note(f"Warning: {job.name}: {sentence}")
            if result is not None and result.failed is not None:
                self.failed[job.name] = result.failed
            elif result is not None and result.stopped is not None:
                if state == "running":  # the worker alone was stopped: by a cluster that takes a machine away
                    waiting.append(job)
                self.told(job, "waiting")
                continue
            if job.name in self.failed:
                self.note(f"{job.name} failed: {self.failed[job.name]}")
            self.told(job, "failed" if job.name in self.failed else "waiting" if result is None else "done")
        for job in running.values():
            self.told(job, state)

    def _result(self, reference: Any) -> Ended | None:
        """How a job ended; None if its worker died or was never begun."""
        kinds = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except kinds.RayTaskError as problem:  # `work` raises nothing: it could not even be called there
            return Ended(failed=f"A worker could not begin: {_line(problem.cause or problem)}.")
        except (kinds.TaskCancelledError, kinds.WorkerCrashedError, kinds.NodeDiedError, kinds.OutOfMemoryError):
            return None
        except kinds.ObjectLostError:  # with the machine that held it
            return None

    def _another_try(self, job: SweepJob) -> bool:
        """Whether a job whose worker died is to be given to another."""
        iteration = job.iteration(self.folder)
        before, count = self._deaths.get(job.name, (-1, 0))
        count = count + 1 if before == iteration else 1
        self._deaths[job.name] = iteration, count
        if count >= DEATHS:
            self.failed[job.name] = (
                f"Its worker died {DEATHS} times at iteration {iteration} (was there too little memory?)."
            )
            return False
        self.note(f"{job.name}: its worker died; it goes on from iteration {iteration}.")
        return True


def examined(ray: Any, resources: Resources, file: Path, content: bytes) -> Plan:
    """The plan in a file, whole; `UserError` if algorithms and tasks do not fit.

    A worker reads it: once JAX has been started here, Ray's processes could not be started safely from here.
    """
    with connected(ray):
        found = ray.get(resources.remote(ray, examine).remote(str(file), content, resources))
    if isinstance(found, UserError):
        raise found
    return found


@contextlib.contextmanager
def connected(ray: Any) -> Iterator[None]:
    """What goes wrong with Ray itself is one sentence."""
    try:
        yield
    except ray.exceptions.RayError as problem:
        raise UserError(f"Ray failed ({_line(problem)}); the same command goes on.", exit_code=1) from problem


@contextlib.contextmanager
def session(resources: Resources) -> Iterator[Any]:
    """The module `ray`, connected; a session that is open already is used and left open.

    A local one has no dashboard, sends no statistics, and leaves no file behind.
    """
    ray = load_ray()
    if ray.is_initialized():
        yield ray
        return
    address, folder = resources.address, None
    settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": os.environ.get("SAFEMETA_DEBUG") == "1"}
    variables = dict(QUIET)
    if address is None:
        folder = tempfile.mkdtemp(prefix="safemeta-ray-", dir=_short())
        workers = resources.workers or max(1, (os.cpu_count() or 1) // resources.cpus)
        settings |= {
            "num_cpus": workers * resources.cpus, "num_gpus": None if resources.gpus else 0,
            "include_dashboard": False, "object_store_memory": STORE, "_temp_dir": folder,
            "_node_ip_address": "127.0.0.1",
        }  # fmt: skip
        variables["RAY_AUTH_TOKEN"] = _TOKEN  # else Ray writes one into the user's home
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with _environment(variables), contextlib.redirect_stdout(io.StringIO()):  # Ray prints what workers died of
            try:
                _connect(ray, address, settings)
            except SystemExit as problem:  # Ray's answer to SIGTERM
                raise Interrupted("Stopped.", exit_code=128 + signal.SIGTERM) from problem
            finally:
                _restore(handler)
            try:
                yield ray
            finally:
                ray.shutdown()
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _connect(ray: Any, address: str | None, settings: dict[str, Any]) -> None:
    """Start Ray here, or reach it at its address; `UserError` if it cannot be done."""
    if address is not None:
        _knock(address)
    for attempt in range(STARTS):
        try:
            with warnings.catch_warnings():  # JAX's, where it is running already: the forked process only executes
                warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
                ray.init(address or "local", **settings)
            return
        except Exception as problem:
            ray.shutdown()
            slow = address is None and "timed out" in str(problem)  # after 30 s: a machine that is very busy
            if not slow or attempt == STARTS - 1:
                where = "Ray could not be started" if address is None else f"Ray cannot be reached at '{address}'"
                raise UserError(f"{where}: {_line(problem)}.", exit_code=1) from problem


def _knock(address: str) -> None:
    """Raise `UserError` if nobody listens at HOST:PORT; Ray itself would try for minutes, and log each failure."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto", or what Ray will not understand
    try:
        socket.create_connection((host, int(port)), timeout=REACH).close()
    except (OSError, OverflowError) as problem:
        why = (getattr(problem, "strerror", None) or str(problem) or "no answer").lower()
        raise UserError(f"Ray cannot be reached at '{address}': {why}.", exit_code=1) from problem


def load_ray() -> Any:
    """The module `ray`, and its exceptions; `UserError` if it is not installed."""
    with _environment(QUIET):
        try:
            import ray
            import ray.exceptions
        except ImportError as problem:
            raise UserError(f"A sweep runs on Ray, which is not installed; install it with: {INSTALL}", 1) from problem
    return ray


def _restore(handler: Any) -> None:
    """Ray sets a handler of its own."""
    with contextlib.suppress(ValueError):  # outside of the main thread nobody sets one
        signal.signal(signal.SIGTERM, handler)


def _short() -> str | None:
    """A folder for temporary files in which sockets can be made; None: the usual one."""
    return None if len(tempfile.gettempdir()) <= SOCKETS or not os.path.isdir("/tmp") else "/tmp"


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables, except those that the user has set, for the length of a block; Ray adds more of them."""
    before = set(os.environ)
    os.environ.update({name: value for name, value in variables.items() if name not in before})
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("RAY_") and name not in before]:
            del os.environ[name]


def _line(problem: BaseException) -> str:
    """The first line of what went wrong."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return (lines[0] if lines else type(problem).__name__)[:300].rstrip(".")
