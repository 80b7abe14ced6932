"""Is it still the same model? Compare a tuned model with what it becomes on its way to a server.

Introduced in notebook 10. `Local` is a model in this process, `Server` one behind an
OpenAI-compatible address, `serve_gguf` starts llama.cpp's server on this machine, and
`Reference.compare` tells what differs and why.
"""

from course_utils._core.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
