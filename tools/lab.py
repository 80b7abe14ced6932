"""Open JupyterLab at a notebook: on this machine's loopback only, with Jupyter's own token."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def has_browser() -> bool:
    """Whether a browser can be opened here: there is a screen, or `BROWSER` names a helper."""
    if sys.platform.startswith("linux") and not any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    ):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def command(notebook: str, extra: list[str]) -> list[str]:
    """The JupyterLab command line for a notebook, a path from the course's folder."""
    line = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={ROOT}"]
    # By its default page, and not as an argument: the printed address leads there too, then.
    line += ["--ServerApp.ip=127.0.0.1", f"--LabApp.default_url=/lab/tree/{notebook}"]
    line.append("--log-level=WARN")  # all but the address is noise to a learner
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        line.append("--allow-root")  # containers run as root; Jupyter asks for a word on it
    if not has_browser():
        line.append("--no-browser")
    return line + extra


def main() -> None:
    """`lab.py NOTEBOOK [Jupyter's own options]`."""
    notebook, extra = sys.argv[1], sys.argv[2:]
    if not has_browser():
        print("No browser here: open the address below that begins with http://127.0.0.1")
    print("Stop JupyterLab with Ctrl-C.\n", flush=True)
    os.chdir(ROOT)
    line = command(notebook, extra)
    os.execv(line[0], line)


if __name__ == "__main__":
    main()
