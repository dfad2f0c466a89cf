"""What a user may do wrong, said in one sentence."""

import difflib
import errno
import re
from collections.abc import Iterable

LONGEST_WORD, LONGEST = 300, 1000  # characters of a message that are shown: what it repeats may be longer


class UserError(Exception):
    """One sentence for the user: what was wrong, what is allowed, the nearest match.

    `exit_code` is 2 where the command was used wrongly and 1 where something that was used rightly failed.
    """

    def __init__(self, message: str, exit_code: int = 2):
        super().__init__(_shortened(" ".join(message.split())))
        self.exit_code = exit_code


class Interrupted(UserError):
    """Training was asked to stop and has saved its state; the exit code is 128 + the signal's number."""


def _shortened(text: str) -> str:
    """The beginning and the end of what nobody would read in between."""
    text = re.sub(rf"\S{{{LONGEST_WORD},}}", lambda word: f"{word[0][:200]}...{word[0][-20:]}", text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 300]} ... {text[-290:]}"


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name that `name` most resembles, if any does."""
    lowered = {option.lower().replace("_", "-"): option for option in allowed}
    found = difflib.get_close_matches(name.lower().replace("_", "-"), lowered, n=1, cutoff=0.5)
    return lowered[found[0]] if found else None


def unknown(kind: str, name: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not among the allowed ones.

    With many allowed names, only the nearest one is shown.
    """
    options = list(allowed)
    message = f"Unknown {kind} '{name}'"
    match = nearest(name, options)
    if match is not None:
        message += f"; did you mean '{match}'?"
    if len(options) <= 12:
        message += f" ({'Allowed' if match else 'allowed'}: {', '.join(options)}.)" if options else " (there are none.)"
    elif match is None:
        message += "; see --help for those there are."
    return UserError(message)


def from_value_error(problem: ValueError) -> UserError:
    """A library's `ValueError` as a sentence: capital first, full stop last."""
    text = " ".join(str(problem).split()) or "a value is not allowed"
    text = text if text[0].isupper() or not text.split()[0].isalpha() else text[0].upper() + text[1:]
    return UserError(text if text[-1] in ".!?)" else text + ".")


def simulation_failed(problem: Exception) -> UserError:
    """The sentence for a simulation that failed while a policy was being judged or adapted."""
    text = str(problem)
    return UserError(f"The simulation failed: {text}.", exit_code=1)


def writing_failed(problem: OSError, path: object) -> UserError:
    """The sentence for an `OSError` while `path` was being read or written."""
    if problem.errno == errno.ENOSPC:
        reason = "no space is left on the disk"
    else:
        reason = (problem.strerror or str(problem) or type(problem).__name__).lower()
    return UserError(f"Cannot use '{problem.filename or path}': {reason}.", exit_code=1)
