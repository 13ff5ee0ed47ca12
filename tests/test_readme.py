"""What the README prints for people to type works as it is printed."""
import os
import re
import shutil
import subprocess
import sys

from conftest import ROOT, STAGES, run_little


def snippet(heading):
    """The first indented block under a heading of README.md, without the indent."""
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as f:
        text = f.read().split(f"## {heading}\n", 1)[1]
    return re.sub(r"^    ", "", re.search(r"(?:^    .*\n)+", text, re.M)[0], flags=re.M)


def test_your_own_data_in_ten_lines(tmp_path):
    lines = snippet("Your own data in ten lines")
    assert len(lines.splitlines()) <= 10 and lines.endswith("python ppo.py --data=mine\n")
    (tmp_path / "data").mkdir()
    for path in ("data/__init__.py", "data/prepare.py"):
        shutil.copy(os.path.join(ROOT, path), tmp_path / path)
    commands = lines.replace("python ", f"{sys.executable} ").rsplit("\n", 2)[0]        # all but ppo.py, which follows stage by stage, with few steps
    result = subprocess.run(["bash", "-euc", commands], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for stage in STAGES:
        run_little(stage, tmp_path / "data" / "mine", tmp_path / "out")
    assert (tmp_path / "out" / "ppo.pt").exists()
