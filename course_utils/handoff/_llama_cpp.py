"""llama.cpp's server in this process, by the package xllamacpp."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader

from course_utils._core import checks
from course_utils.errors import BadValue, CourseError, ImpossibleSetup
from course_utils.handoff._gguf import check_gguf, parse_template


def serve_gguf(
    path: str | Path,
    *,
    adapters: Sequence[str | Path] = (),
    template: str | None = None,
    port: int = 0,
    parallel: int = 1,
    context: int = 1024,
) -> contextlib.AbstractContextManager[str]:
    """Serve a GGUF file with llama.cpp, at an address that only this machine reaches.

    Use it as `with serve_gguf(…) as url:`; the server ends with the block.

    Args:
        path: the model's file.
        adapters: files of LoRA adapters. None of them counts until a request asks for it, as
            `{"lora": [{"id": 0, "scale": 1.0}], "cache_prompt": False}`. Without the second entry,
            the server may go on from a prompt that it read with another adapter
            (github.com/ggml-org/llama.cpp/issues/26207).
        template: a chat template (Jinja) in place of the file's own.
        port: the port; by default any that is free.
        parallel: how many requests are answered together.
        context: the tokens that each of them may take.

    Returns:
        A context manager that gives the address, as http://127.0.0.1:43409. OpenAI's client takes
        it with /v1 at its end.

    Raises:
        BadValue: no such file, or a number that is not possible.
        DamagedFile: a file is not whole.
        ImpossibleSetup: the port is taken, an adapter is for another model, or the template does
            not parse.
        CourseError: llama.cpp cannot load the model.
    """
    checks.whole("port", port, least=0, most=65535)
    checks.whole("parallel", parallel, least=1, most=64)
    checks.whole("context", context, least=16, most=10**6)
    files = checks.items("adapters", adapters, "files")
    if template is not None:
        checks.text("template", template)
        try:
            parse_template(template)
        except ValueError as error:
            raise ImpossibleSetup(f"The template does not parse: {error}.") from None
    if port:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise ImpossibleSetup(
                    f"Port {port} cannot be had ({error.strerror}). Stop the program that has it, "
                    "name another port, or leave it out."
                ) from None
    reader = check_gguf(path)
    for adapter in files:
        _check_adapter(adapter, path, reader)
    try:
        import xllamacpp
    except ImportError:
        raise BadValue("serve_gguf needs llama.cpp: pip install xllamacpp") from None
    settings = xllamacpp.CommonParams()
    settings.model.path = str(Path(path).expanduser())
    settings.hostnames, settings.port = ["127.0.0.1"], port
    settings.n_parallel, settings.n_ctx = parallel, parallel * context
    settings.verbosity = -1
    threads = torch.get_num_threads()
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    if template is not None:
        settings.chat_template = template
    if files:
        settings.lora_adapters = [
            # With strength 0: the setting that is meant for it, lora_init_without_apply, has no
            # effect (github.com/ggml-org/llama.cpp/issues/28674).
            xllamacpp.CommonAdapterLoraInfo(str(Path(file).expanduser()), 0.0)
            for file in files
        ]
    return _serving(settings, path)


@contextlib.contextmanager
def _serving(settings: Any, path: str | Path) -> Iterator[str]:
    import xllamacpp

    try:
        server = xllamacpp.Server(settings)
    except RuntimeError as error:
        raise CourseError(
            f"llama.cpp could not load {path}: {error} Its architecture may be too new for the "
            "installed xllamacpp, its chat template may fail when it is filled in, or the memory "
            "may be too small."
        ) from None
    try:
        yield server.listening_address
    finally:
        del server


def _check_adapter(adapter: str | Path, path: str | Path, model: GGUFReader) -> None:
    """Refuse an adapter whose matrices the model does not have, before llama.cpp does."""
    reader = check_gguf(adapter)
    kind = reader.fields.get("general.type")
    if kind is None or kind.contents() != "adapter":
        raise ImpossibleSetup(f"{adapter} is not an adapter, but a model of its own.")
    shapes = {tensor.name: [int(size) for size in tensor.shape] for tensor in model.tensors}
    for tensor in reader.tensors:
        name, _, part = tensor.name.rpartition(".lora_")
        side = 0 if part == "a" else 1  # the matrix's input and its output
        if part in ("a", "b") and (name not in shapes or shapes[name][side] != tensor.shape[side]):
            raise ImpossibleSetup(
                f"The adapter {adapter} is for another model than {path}: {tensor.name} does not "
                f"fit {name}, which is {shapes.get(name, 'not there')}."
            )
