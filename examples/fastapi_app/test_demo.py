"""The demo happens as it is told, over real mTLS, and shows the logs when it does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

CHAIN = '201 {"number":2,"ordered_by":"shop","invoice":{"number":1,"asked_by":"orders"}}'
STORY = (
    CHAIN,
    "shop     -> billing POST   /invoices 403 refused: default_deny",
    '502 {"detail":"billing refused this service: intention_deny"}',
    "put back, orders are taken",
    "billing shows a certificate of the new root",
    "billing stopped with exit code 0",
    '502 {"detail":"billing gave no answer"}',
    "orders stopped with exit code 0",
)


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    """The demo of `folder`, run to its end."""
    return subprocess.run(
        [sys.executable, str(folder / "demo.py")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.slow
def test_all_of_the_story_happens_in_its_order() -> None:
    done = run(HERE)
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout
    places = [told.find(part) for part in STORY]
    assert -1 not in places, told
    assert places == sorted(places)
    assert done.stderr == ""


@pytest.mark.slow
def test_what_does_not_happen_is_said_at_once_with_the_logs(tmp_path: Path) -> None:
    for name in ("demo.py", "stage.py", "app.py", "intentions.yaml"):
        shutil.copy(HERE / name, tmp_path)
    (tmp_path / "billing.py").write_text("raise RuntimeError('billing is broken')\n")
    done = run(tmp_path)
    assert done.returncode == 1
    assert "FAIL orders and billing registered" in done.stdout
    _, billing_log = done.stdout.split("--- billing")
    assert "billing is broken" in billing_log
