"""
Every experiment imports this first: it puts the project and the village on sys.path.

The functions here need nothing of the project.
"""

import csv
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "data", "village")]


def run_script(command, log):
    """Run a Python command on one thread, with its output added to a file → its exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "a") as f:
        return subprocess.call(
            [sys.executable, *command],
            stdout=f,
            stderr=f,
            stdin=subprocess.DEVNULL,
            env=environment,
        )


def read_rows(path):
    """Rows of a CSV, numbers as numbers; [] if there is none."""
    if not os.path.exists(path):
        return []

    def value(column, x):
        try:
            return x if column == "base" else float(x)  # a hash may look like a number
        except ValueError:
            return x

    with open(path, newline="", encoding="utf-8") as f:
        return [{k: value(k, v) for k, v in row.items()} for row in csv.DictReader(f)]


def of_base(path, rows, base):
    """The rows whose runs started from this base (its hash). Others are named, and left out.

    They were made with other data or other settings: together they would be a mean of nothing.
    """
    others = [row["base"] or "not known" for row in rows if row["base"] != base]
    if others:
        names = ", ".join(sorted(set(others)))
        print(f"{path}: {len(others)} rows are of another base ({names}) and left out", flush=True)
    return [row for row in rows if row["base"] == base]


def read_seeds(path, base=None):
    """{seed: {column: number}} of a CSV with a column "seed", of this base or of any."""
    rows = read_rows(path)
    rows = rows if base is None else of_base(path, rows, base)
    return {int(row.pop("seed")): row for row in rows}


def write_seeds(path, rows):
    """rows: {seed: {column: number}}; a seed may lack columns."""
    columns = list({k: 0 for r in rows.values() for k in r})
    with open(path, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, ["seed", *columns], restval="nan")
        writer.writeheader()
        writer.writerows({"seed": n, **rows[n]} for n in sorted(rows))
