"""Motion in video: several clips at once, each frame a NumPy array.

One stream per clip, in worker processes. A stream keeps a slowly changing picture of the background
and scores each frame by its distance from it. It reads frames in place, in shared memory.

    pip install 'velo-stream[examples]'
    python examples/motion.py

Prints the movement in each clip, and draws `examples/out/motion.png`.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path
from typing import Any

import av
import matplotlib
import numpy as np

import data
from velo import stream_fn

matplotlib.use("Agg")

Frame = np.ndarray[Any, np.dtype[np.uint8]]

MOVING = 6.0  # grey levels, of 255, by which a pixel of a moving picture changes on average


@stream_fn(mode="process", buffer=16)
async def motion(frames: AsyncIterator[Frame]) -> AsyncIterator[float]:
    """Score each frame by its mean distance from the background."""
    background = None
    async for frame in frames:
        picture = frame.astype(np.float32)
        if background is None:
            background = picture
        yield float(np.abs(picture - background).mean())
        background += 0.1 * (picture - background)


async def frames(clip: Path, count: int | None) -> AsyncIterator[Frame]:
    """Decode a clip to grey pictures, in a thread, so that the event loop keeps running."""
    with av.open(str(clip)) as video:
        decoded = islice(video.decode(video=0), count)
        while (frame := await asyncio.to_thread(next, decoded, None)) is not None:
            yield frame.to_ndarray(format="gray8").astype(np.uint8, copy=False)


async def main(count: int | None = None) -> None:
    """Score all clips at the same time, and draw the scores."""

    async def scored(clip: Path) -> list[float]:
        return await motion.run(frames(clip, count))

    clips = data.clips()
    results = await asyncio.gather(*map(scored, clips))
    for clip, scores in zip(clips, results, strict=True):
        moving = sum(score > MOVING for score in scores)
        peak = int(np.argmax(scores))
        print(
            f"{clip.stem:<20} {len(scores):>4} frames, {moving:>4} of them moving,"
            f" most at frame {peak} ({scores[peak]:.1f})"
        )
    print(draw(clips, results))


def draw(clips: list[Path], results: list[list[float]]) -> Path:
    """Draw the motion of each clip over time."""
    from matplotlib import pyplot as plt

    figure, rows = plt.subplots(len(clips), figsize=(9, 1.7 * len(clips)), layout="constrained")
    for row, clip, scores in zip(rows, clips, results, strict=True):
        with av.open(str(clip)) as video:
            rate = float(video.streams.video[0].average_rate or 25)
        seconds, motion_score = np.arange(len(scores)) / rate, np.array(scores)
        row.plot(seconds, motion_score, color="#1f4e79", linewidth=1.2)
        row.fill_between(
            seconds, MOVING, motion_score, where=motion_score > MOVING, color="#f28e2b", alpha=0.6
        )
        row.axhline(MOVING, color="#999999", linewidth=0.7, linestyle="--")
        row.set_title(clip.stem, loc="left", fontsize=10)
        row.set_xlim(0, seconds[-1])
        row.spines[["top", "right"]].set_visible(False)
    rows[-1].set_xlabel("seconds")
    figure.supylabel("motion (mean distance from the background, grey levels)", fontsize=9)
    data.OUT.mkdir(exist_ok=True)
    target = data.OUT / "motion.png"
    figure.savefig(target, dpi=110)
    plt.close(figure)
    return target


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else None))
