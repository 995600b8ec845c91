from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "catalog.py"


def test_the_benchmark_of_the_catalogue_runs_and_writes_its_figures(tmp_path: Path) -> None:
    ended = subprocess.run(
        [
            *(sys.executable, SCRIPT, "--datasets", "600", "--adds", "20"),
            *("--folder", tmp_path, "--json", tmp_path / "figures.json"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ended.returncode == 0, ended.stderr
    figures = json.loads((tmp_path / "figures.json").read_text("utf-8"))["figures"]
    assert all(number > 0 for number, _ in figures.values())
    for name in ("start", "build from the files", "add, 8 thread(s)", "get"):
        assert name in figures
        assert name in ended.stdout
    assert [each.name for each in tmp_path.iterdir()] == ["figures.json"]
