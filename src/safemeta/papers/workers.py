"""Jobs in processes of their own, so many at a time."""

import multiprocessing
import os
import queue
import signal
from pathlib import Path
from typing import Any

from safemeta.experiment.errors import Interrupted
from safemeta.experiment.job_progress import Display, JobProgress
from safemeta.experiment.jobs import Job, reason

PATIENCE = 60.0  # seconds that a stopped worker has to save its state


def work_in_processes(pending: dict[str, Job], runs: Path, display: Display, workers: int) -> dict[str, str]:
    """All jobs, `workers` at a time, each in a fresh process; names of those that failed, with the reason.

    Each worker has processor cores of its own: compiled programs and MuJoCo would else start a thread for every core in
    each of them, which on two cores takes 1.4 times as long as one thread for each of two workers.

    If this process is told to stop, or one worker is, all workers are, and save what they have.
    """
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    waiting, living, failed = list(pending.items()), {}, {}
    free = shares(workers)
    held = {}
    try:
        while waiting or living:
            while waiting and len(living) < workers:
                name, job = waiting.pop(0)
                living[name] = context.Process(target=_work, args=(job, runs / name, messages), name=name)
                held[name] = free.pop(0)
                _start(living[name], held[name])
            _listen(messages, display, failed)
            for name in [name for name, process in living.items() if not process.is_alive()]:
                process = living.pop(name)
                free.append(held.pop(name))
                _listen(messages, display, failed)
                if process.exitcode and process.exitcode > 128:
                    raise Interrupted("A worker was stopped.", exit_code=process.exitcode)
                if process.exitcode and name not in failed:
                    failed[name] = f"Its process ended with code {process.exitcode}."
                    display.note(f"{name} failed: {failed[name]}")
                display.tell(name, 1.0, "failed" if name in failed else "done")
    finally:
        for process in living.values():
            process.terminate()  # by SIGTERM
        for process in living.values():
            process.join(PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
        messages.close()
    return failed


def shares(workers: int) -> list[set[int]]:
    """The cores of each of so many workers: disjoint, unless there are more workers than cores; empty: all cores."""
    if not hasattr(os, "sched_getaffinity"):  # macOS, Windows
        return [set()] * workers
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[index::workers]) or {cores[index % len(cores)]} for index in range(workers)]


def _start(process: Any, cores: set[int]) -> None:
    """Start it on these cores, and deaf to Ctrl-C, which a terminal sends to all; this process stops it by SIGTERM.

    Otherwise Python would complain in each process that is still importing.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        process.start()
        return
    everywhere = os.sched_getaffinity(0) if cores else None
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        if everywhere:
            os.sched_setaffinity(0, cores)  # which the new process inherits
        process.start()
    finally:
        if everywhere:
            os.sched_setaffinity(0, everywhere)
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _listen(messages: Any, display: Display, failed: dict[str, str]) -> None:
    """Pass on what the workers have told; waits a moment if there is nothing."""
    wait = 0.2
    while True:
        try:
            name, share, words = messages.get(timeout=wait)
        except queue.Empty:
            return
        wait = 0.0
        if share is None:
            failed[name] = words
            display.note(f"{name} failed: {words}")
        else:
            display.tell(name, min(share, 0.999), words)


def _work(job: Job, folder: Path, messages: Any) -> None:
    """What a worker process does. SIGTERM ends it at once, except in training, which saves its state first."""
    try:
        from safemeta.experiment.compilation import enable_cache

        enable_cache()
        job.work(folder, JobProgress(lambda share, words: messages.put((job.name, share, words))))
    except KeyboardInterrupt:
        _leave(messages, 130)
    except Interrupted as problem:
        _leave(messages, problem.exit_code)
    except Exception as problem:
        messages.put((job.name, None, reason(problem)))
        _leave(messages, 1)


def _leave(messages: Any, code: int) -> None:
    """End at once, after what was told has been sent, without Python's complaints about other threads."""
    messages.close()
    messages.join_thread()
    os._exit(code)
