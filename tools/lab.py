"""Open JupyterLab at a notebook: on this machine's loopback only, with a token made for this run.

Jupyter runs in this very process, so that the token stands on no command line.
"""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

from jupyter_server.auth.identity import PasswordIdentityProvider
from jupyter_server.serverapp import LoginHandler, ServerApp
from jupyterlab.labapp import LabApp

ROOT = Path(__file__).resolve().parent.parent
# What a learner's own Jupyter may be set to, and what would open this one to others. The command
# line is stronger than any file.
CLOSED = (
    "--ServerApp.ip=127.0.0.1",
    "--ServerApp.sock=",
    "--ServerApp.allow_origin=",
    "--ServerApp.allow_origin_pat=",
    "--ServerApp.allow_credentials=False",
    "--ServerApp.disable_check_xsrf=False",
)


class Server(ServerApp):
    """Jupyter's server, to which nobody gets without the token that it makes itself."""

    def init_configurables(self) -> None:
        """Before who may come in is set up, forget what configurations say of that."""
        for section in list(self.config):
            if section.endswith("IdentityProvider"):
                del self.config[section]
        for name in ("token", "password"):
            self.config.ServerApp.pop(name, None)
        self._token_set = False
        self.identity_provider_class = PasswordIdentityProvider
        self.login_handler_class = LoginHandler
        super().init_configurables()


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


def options(notebook: str, extra: list[str]) -> list[str]:
    """JupyterLab's options for a notebook, a path from the course's folder; `extra` the last."""
    line = [f"--ServerApp.root_dir={ROOT}", *CLOSED]
    # By its default page, and not as an argument: the printed address leads there too, then.
    line.append(f"--LabApp.default_url=/lab/tree/{notebook}")
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
    for name in ("JUPYTER_TOKEN", "JUPYTER_TOKEN_FILE"):
        os.environ.pop(name, None)
    LabApp.serverapp_class = Server
    LabApp.launch_instance(options(notebook, extra))


if __name__ == "__main__":
    main()
