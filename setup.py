"""The wheel takes the course's datasets along; all else stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithDatasets(build_py):
    """In a clone they lie beside the package, in a wheel inside it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            there = Path(self.build_lib) / "course_utils" / "datasets"
            shutil.copytree("datasets", there, dirs_exist_ok=True)


setup(cmdclass={"build_py": WithDatasets})
