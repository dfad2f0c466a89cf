"""JAX's persistent compilation cache: what was compiled once starts at once the next time."""

import os
from pathlib import Path

VARIABLE = "SAFEMETA_CACHE"


def cache_folder() -> Path:
    """`$SAFEMETA_CACHE`, or the user's cache folder."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("safemeta"))


def enable_cache() -> str | None:
    """Turn the cache on; a sentence to warn with if its folder cannot be used, else None.

    A cache that the user has set up through JAX's own variables is left alone.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's notes on cached code are not for users
    import jax

    if getattr(jax.config, "jax_compilation_cache_dir", None):
        return None
    folder = cache_folder() / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as problem:
        reason = (problem.strerror or "error").lower()
        return f"The compilation cache '{folder}' cannot be used ({reason}); set {VARIABLE} to another folder."
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_raise_persistent_cache_errors", False)
    return None
