"""A model of this machine behind an OpenAI-compatible address. Introduced in notebook 08.

For lessons on the protocol: it answers one request after the other. For real use take llama.cpp's
server, Ollama or vLLM, which speak the same protocol.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from course_utils._core import checks
from course_utils.models._running import Reply, Runner

_MOST_BYTES = 10**7


def _prompt_of(body: dict[str, Any]) -> tuple[str, str | None]:
    """Return a request's prompt and system prompt.

    Raises:
        ValueError: other messages than one prompt, with a system prompt before it or without.
    """
    messages = body["messages"]
    roles = [message["role"] for message in messages]
    if roles not in (["user"], ["system", "user"]):
        raise ValueError(f"one user message is answered, after a system prompt or not; not {roles}")
    return messages[-1]["content"], messages[0]["content"] if len(messages) == 2 else None


def serve(ask: Runner) -> str:
    """Answer OpenAI's `chat.completions` requests at an address that only this machine reaches.

    It runs in the background until the program ends.

    Args:
        ask: the model, as `runner` gives it.

    Returns:
        The address, as `openai.OpenAI` takes it for `base_url`: http://127.0.0.1:…/v1.

    Raises:
        BadValue: not a `Runner`.
    """
    checks.a("ask", ask, Runner, "a Runner, as runner() gives it")
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Print nothing for a request."""

        def do_POST(self) -> None:
            """Answer a request; what cannot be answered is an error of status 400."""
            try:
                size = int(self.headers.get("Content-Length", 0))
                if self.path != "/v1/chat/completions" or not 0 < size < _MOST_BYTES:
                    raise ValueError("only chat completions are answered here")
                body = json.loads(self.rfile.read(size))
                prompt, system = _prompt_of(body)
                options = {
                    "max_new_tokens": body.get("max_completion_tokens", body.get("max_tokens")),
                    "temperature": body.get("temperature"),
                    "seed": body.get("seed"),
                }
                with one_at_a_time:
                    reply = cast(Reply, ask(prompt, system=system, **options))
                choice = {
                    "index": 0,
                    "message": {"role": "assistant", "content": str(reply)},
                    "finish_reason": "stop" if reply.finished else "length",
                }
                status = 200
                answer: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 0}
                answer |= {"model": str(body.get("model")), "choices": [choice]}
            except (KeyError, TypeError, ValueError) as error:
                status, answer = 400, {"error": {"message": f"{error}"}}
            sent = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/v1"
