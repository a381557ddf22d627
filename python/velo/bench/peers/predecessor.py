"""velo-stream 0.x, the package that this one continues, in the newest version that pip finds.

It is imported as `velo`, too, so it has a virtual environment of its own.
"""

from __future__ import annotations

from pathlib import Path

from velo.bench.measure import Plan, Subject
from velo.bench.peers import environments, velo_stream

__all__ = ["NAME", "subjects"]

NAME = "velo-stream"
REQUIREMENTS = (f"{NAME}<1",)


def subjects(plan: Plan, use: str, *arguments: object) -> dict[str, Subject]:
    """Return one measurement by it, with its version in the name.

    Args:
        plan: Names the peers that take part.
        use: How it is used, which follows its name.
        arguments: The measurement of `velo_stream.py`, and its arguments.

    Returns:
        Nothing where it takes no part, or where pip does not install it, which is reported.

    """
    if plan.peers is not None and NAME not in plan.peers:
        return {}
    plan.say(f"an environment for {NAME}")
    try:
        python = environments.python_of(REQUIREMENTS)
        name = f"{NAME} {environments.version_of(python, NAME)}{use}"
    except environments.Refused as error:
        plan.warn(f"{NAME}: {error}")
        return {}
    return {name: Subject(str(Path(velo_stream.__file__)), arguments, python=python)}
