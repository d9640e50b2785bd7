"""The one build step that pyproject.toml cannot express: configs and tools are packaged as ``mmgcvit/.mim``.

This is where OpenMMLab's packages keep theirs, and where mim and ``_base_ = 'mmgcvit::...'`` look for them.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM = ("configs", "tools", "model-index.yml")


class BuildWithMim(build_py):
    """Puts configs, tools and the model index under ``mmgcvit/.mim``: links for an editable install, else copies."""

    def run(self) -> None:
        """Build the package, then add ``.mim``."""
        super().run()
        if self.editable_mode:
            target = ROOT / "mmgcvit" / ".mim"
            target.mkdir(exist_ok=True)
            for name in MIM:
                link = target / name
                if not link.is_symlink():
                    link.symlink_to(Path("..") / ".." / name)
            return
        target = Path(self.build_lib) / "mmgcvit" / ".mim"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in MIM:
            source = ROOT / name
            if source.is_dir():
                # install.sh sets up a checkout: it has no business in a wheel
                unwanted = shutil.ignore_patterns("__pycache__", "*.pyc", "install.sh")
                shutil.copytree(source, target / name, ignore=unwanted)
            else:
                shutil.copy2(source, target / name)


setup(cmdclass={"build_py": BuildWithMim})
