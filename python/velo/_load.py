"""The compiled half of velo, or the reason why it cannot be had."""

from __future__ import annotations

__all__ = ["PROCESS_MODE", "__version__", "other_owners", "reason"]

_DISTRIBUTION = "velo-stream"


def other_owners() -> list[str]:
    """Return the other installed packages that have files in the folder `velo`."""
    import importlib.metadata

    names = importlib.metadata.packages_distributions().get("velo", [])
    return sorted({name for name in names if name.lower().replace("_", "-") != _DISTRIBUTION})


def reason() -> str:
    """Say why there is no `velo`, or no `velo._core`, of ours."""
    import importlib.machinery
    import os
    import platform

    if others := other_owners():
        return (
            f"the package `{others[0]}` is installed as `velo`, too, and one has overwritten files "
            f"of the other: `pip uninstall {others[0]}`, or use a virtual environment of its own"
        )
    folder = os.path.dirname(os.path.abspath(__file__))
    loadable = {f"_core{ending}" for ending in importlib.machinery.EXTENSION_SUFFIXES}
    there = [name for name in os.listdir(folder) if name.startswith("_core.")]
    there = [name for name in there if not name.endswith(".pyi")]
    if not there:
        return f"there is no `_core` in `{folder}`: a checkout needs `pip install .`"
    if not loadable & set(there):
        return (
            f"`{there[0]}` in `{folder}` is for another Python than this one, "
            f"{platform.python_implementation()} {platform.python_version()} on "
            f"{platform.system()} {platform.machine()}"
        )
    return f"`{there[0]}` in `{folder}` does not belong to this velo"


try:
    from velo._core import PROCESS_MODE, __version__
except ImportError as error:
    raise ImportError(
        f"velo cannot load its compiled half ({error}): {reason()}; then reinstall it: "
        f"`pip install --force-reinstall {_DISTRIBUTION}`",
        name="velo._core",
    ) from error
