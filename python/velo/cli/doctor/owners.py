"""Whether another package has the name `velo`, too."""

from __future__ import annotations

from velo._load import other_owners
from velo.cli.doctor.check import FAIL, OK, Check

__all__ = ["package"]


def package() -> Check:
    """Look for packages whose files lie among those of velo."""
    others = other_owners()
    if not others:
        return Check("package", OK, "`velo` belongs to velo-stream alone")
    shown = ", ".join(f"`{name}`" for name in others)
    advice = (
        f"uninstall what you do not need and install the other anew: `pip uninstall "
        f"{' '.join(others)}`, `pip install --force-reinstall velo-stream`; or give each a virtual "
        "environment of its own"
    )
    return Check("package", FAIL, f"{shown} has files in the folder `velo`, too", advice)
