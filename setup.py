"""Build of mmgcvit: configs and tools travel inside the package as ``mmgcvit/.mim``, the way OpenMMLab packages do."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
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


version: dict = {}
exec((ROOT / "mmgcvit" / "version.py").read_text(), version)

setup(
    name="mmgcvit",
    version=version["__version__"],
    description="GC ViT (Global Context Vision Transformer) as a backbone for dense prediction with OpenMMLab",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["mmgcvit", "mmgcvit.*"]),
    package_data={"mmgcvit": ["py.typed"]},
    cmdclass={"build_py": BuildWithMim},
    # The backbone needs these three. mmengine is left to the extras: `mmengine` and `onedl-mmengine` install the
    # same package folder, so a requirement on either would break whoever has the other.
    # (The others come with torch, timm and mmengine anyway; what is imported is named.)
    install_requires=["torch>=2.1", "timm>=1.0.31", "packaging", "safetensors", "filelock", "rich"],
    extras_require={
        "onedl": [
            "torchvision",
            "onedl-mmengine>=0.10.12",
            "onedl-mmcv>=2.3.6",
            "onedl-mmdetection>=3.5.1",
            "onedl-mmsegmentation>=1.4.2",
            "ftfy",
            "regex",
        ],
        "openmmlab": [
            "torchvision",
            "mmengine>=0.10.7",
            "mmcv>=2.0.0rc4,<2.2.0",
            "mmdet>=3.3.0",
            "mmsegmentation>=1.2.2",
            "numpy<2",
            "opencv-python<4.12",
            "ftfy",
            "regex",
        ],
        "digits": ["scikit-learn", "pillow", "rich"],  # to make the digit scenes
        "keras": ["h5py"],  # to read tfgcvit's files
        "hf": ["datasets"],  # to read Hugging Face data sets
        "mim": ["openmim"],
        "test": ["pytest", "pytest-xdist", "hypothesis", "h5py", "datasets"],
        "dev": ["ruff", "setuptools", "wheel"],
    },
    entry_points={"console_scripts": ["mmgcvit = mmgcvit.__main__:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
