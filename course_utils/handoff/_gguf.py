"""GGUF files: made by llama.cpp's converters, checked, and rounded to 4 bits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from course_utils._core import checks
from course_utils._core.files import locked, make_folder, saying_why
from course_utils.errors import CourseError, DamagedFile, ImpossibleSetup, NotEnoughDisk
from course_utils.models._converter import converter

OUTTYPES = ("f32", "f16", "bf16", "q8_0")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
# What Python and NumPy say of a write that failed for want of room.
_FULL = re.compile(r"No space left|quota exceeded|File too large|requested and \d+ written")


class _Generation(Extension):
    """The tag by which templates mark the model's own words; transformers and llama.cpp know it."""

    tags = frozenset({"generation"})

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Read on to the end of the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def parse_template(text: str) -> None:
    """Parse a chat template in the sandboxed Jinja, and do not run it.

    Raises:
        ValueError: it does not parse.
    """
    try:
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols", _Generation]).parse(
            text
        )
    except TemplateSyntaxError as error:
        raise ValueError(f"{error.message}, in line {error.lineno}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_gguf(path: str | Path) -> gguf.GGUFReader:
    """Open a GGUF file as data, and look whether it is whole.

    Its chat template is parsed in the sandboxed Jinja and not run.

    Args:
        path: the file.

    Returns:
        The reader of the `gguf` package: `fields` and `tensors`.

    Raises:
        BadValue: no such file.
        DamagedFile: not a GGUF file, one that was cut short, or one whose template does not parse.
    """
    file = checks.path("path", path, folder=False)
    if not file.is_file():
        raise checks.refuse("path", path, "a GGUF file that is there")
    with file.open("rb") as opened:
        begins = opened.read(4)
    if begins != b"GGUF":
        raise DamagedFile(
            f"{file} is not a GGUF file: it begins with {begins!r}, not with b'GGUF'."
        )
    try:
        reader = gguf.GGUFReader(file)
        template = reader.fields.get("tokenizer.chat_template")
        text = template.contents() if template else None
    except (
        ValueError,
        IndexError,
        KeyError,
        OverflowError,
        UnicodeDecodeError,
        MemoryError,
    ) as error:
        raise DamagedFile(
            f"{file} was cut short or is damaged ({type(error).__name__}: {error}). Copy or "
            "convert it again."
        ) from None
    if text is not None:
        try:
            parse_template(str(text))
        except ValueError as error:
            raise DamagedFile(
                f"The chat template in {file} does not parse: {error}. Convert the model again "
                "from a tokenizer whose template works."
            ) from None
    return reader


def _convert(script: str, what: str, target: str | Path, *arguments: str) -> Path:
    """Run one of the converters into a file that appears when it is whole."""
    file = checks.path("target", target, folder=False)
    make_folder(file.parent)
    partial = file.with_name(f"{file.name}.partial")
    command = [sys.executable, str(converter() / script), *arguments, "--outfile", str(partial)]
    with locked(file, seconds=-1), saying_why(what, file):
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=_environment())
            if done.returncode:
                told = done.stderr.strip().splitlines()
                if full := next((line for line in told if _FULL.search(line)), None):
                    raise NotEnoughDisk(
                        f"{what} could not be converted: the disk is full ({full}). {file} is "
                        "unchanged. Free some space, and try again."
                    )
                said = (told or ["nothing was said"])[-1]
                if done.returncode < 0:
                    said = f"the system ended it (signal {-done.returncode}). Is the memory full?"
                raise CourseError(
                    f"{what} could not be converted: {said}\n"
                    f"{file} is unchanged. The command was: {' '.join(command)}"
                )
            check_gguf(partial)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
    return file


def _environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def to_gguf(folder: str | Path, target: str | Path, outtype: str = "f16") -> Path:
    """Convert a folder of `save_pretrained` with llama.cpp's `convert_hf_to_gguf.py`.

    The folder needs the tokenizer too. What was at `target` is replaced when the new file is whole.

    Args:
        folder: the model's folder.
        target: the file to write.
        outtype: what the matrices are stored in: f32, f16, bf16 or q8_0.

    Returns:
        The file's path.

    Raises:
        BadValue: not a folder with a model and a tokenizer.
        UnknownName: another outtype.
        CourseError: the converter fails, with what it said.
        NotEnoughDisk: the disk is full.
    """
    checks.one_of("outtype", outtype, OUTTYPES)
    checks.path("target", target, folder=False)
    source = checks.path("folder", folder, folder=True)
    if not (source / "config.json").is_file() or not list(source.glob("*.safetensors")):
        hint = " (it holds an adapter: merge it first, or use lora_to_gguf)"
        kind = "a folder with config.json and *.safetensors"
        is_adapter = (source / _ADAPTER[0]).is_file()
        raise checks.refuse("folder", str(folder), kind + hint * is_adapter)
    if not list(source.glob("tokenizer*")):
        raise checks.refuse("folder", str(folder), "a folder with the tokenizer as well")
    arguments = (str(source), "--outtype", outtype)
    return _convert("convert_hf_to_gguf.py", source.name, target, *arguments)


def lora_to_gguf(folder: str | Path, base: str | Path, target: str | Path) -> Path:
    """Convert a LoRA adapter with llama.cpp's `convert_lora_to_gguf.py`, in 16 bits.

    Args:
        folder: the adapter's folder, as peft saves it.
        base: the folder of the model that it was trained on.
        target: the file to write.

    Returns:
        The file's path.

    Raises:
        BadValue: not the folder of an adapter, or no such base.
        DamagedFile: one of their files is not whole.
        ImpossibleSetup: the adapter's matrices do not fit those of the base.
        CourseError: the converter fails, with what it said.
        NotEnoughDisk: the disk is full.
    """
    checks.path("target", target, folder=False)
    source = checks.path("folder", folder, folder=True)
    model = checks.path("base", base, folder=True)
    if not all((source / name).is_file() for name in _ADAPTER):
        raise checks.refuse("folder", str(folder), f"a folder with {' and '.join(_ADAPTER)}")
    if not (model / "config.json").is_file() or not list(model.glob("*.safetensors")):
        kind = "the folder of the base model, with config.json and *.safetensors"
        raise checks.refuse("base", str(base), kind)
    _check_fits(source, model)
    arguments = (str(source), "--base", str(model), "--outtype", "f16")
    return _convert("convert_lora_to_gguf.py", source.name, target, *arguments)


def _check_fits(adapter: Path, base: Path) -> None:
    """Hold each of the adapter's matrices against the one that it is added to."""
    shapes: dict[str, list[int]] = {}
    for file in base.glob("*.safetensors"):
        shapes |= _shapes(file)
    for name, shape in _shapes(adapter / _ADAPTER[1]).items():
        if not name.endswith((".lora_A.weight", ".lora_B.weight")):
            continue
        matrix = name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] + ".weight"
        side = 1 if ".lora_A." in name else 0
        if matrix not in shapes or shapes[matrix][side] != shape[side]:
            there = f"there it is {shapes[matrix]}" if matrix in shapes else "there it is not"
            raise ImpossibleSetup(
                f"The adapter {adapter} is for another model than {base}: its {name} is {shape}, "
                f"to be added to {matrix}, and {there}. Its adapter_config.json names the model "
                "that it was trained on."
            )


def _shapes(file: Path) -> dict[str, list[int]]:
    """The shape of each tensor in a file of safetensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DamagedFile(f"{file} is not whole ({error}). Save or copy it again.") from None


def to_4_bits(source: str | Path, target: str | Path) -> Path:
    """Round a GGUF file's matrices to Q4_0: blocks of 32 weights with a scale, 4.5 bits a weight.

    The embeddings get Q8_0, as llama.cpp's own `llama-quantize` does. That program, which is in no
    Python package, also knows better formats, such as Q4_K_M.

    Args:
        source: a file in f32, f16 or bf16.
        target: the file to write.

    Returns:
        The file's path.

    Raises:
        BadValue: no such file.
        DamagedFile: it is not whole, or does not name its architecture.
        ImpossibleSetup: its weights are rounded already.
        NotEnoughDisk: the disk is full.
    """
    reader = check_gguf(source)
    if "general.architecture" not in reader.fields:
        raise DamagedFile(f"{source} has no general.architecture, so it is no model.")
    file = checks.path("target", target, folder=False)
    kinds = gguf.GGMLQuantizationType
    rounded = {t.tensor_type for t in reader.tensors} - {kinds.F32, kinds.F16, kinds.BF16}
    if rounded:
        names = ", ".join(sorted(kind.name for kind in rounded))
        raise ImpossibleSetup(
            f"{source} has weights in {names} already, and rounding twice loses twice. Convert the "
            "model to f16, and round that."
        )
    make_folder(file.parent)
    partial = file.with_name(f"{file.name}.partial")
    with locked(file, seconds=-1), saying_why(file.name, file):
        try:
            _write_rounded(reader, partial)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
    return file


def _write_rounded(reader: gguf.GGUFReader, target: Path) -> None:
    kinds = gguf.GGMLQuantizationType
    architecture = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(target, architecture)
    writer.data_alignment = reader.alignment
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = gguf.LlamaFileType.MOSTLY_Q4_0 if name == "general.file_type" else field.contents()
        writer.add_key_value(name, value, kind, sub_type=sub_type)
    for tensor in reader.tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        kind = kinds.F32
        if data.ndim == 2 and data.shape[-1] % 32 == 0:
            kind = kinds.Q8_0 if "embd" in tensor.name else kinds.Q4_0
        writer.add_tensor(
            tensor.name,
            gguf.quants.quantize(np.asarray(data, dtype=np.float32), kind),
            raw_dtype=kind,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
