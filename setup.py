"""Packaging: the two folders that ship inside the package, and the file that makes nnU-Net find the trainers.

``trainers/`` and ``plans/`` are top-level folders of the repository, installed as ``nnunet_ssl.trainers`` and
``nnunet_ssl.plans``. ``nnunet_ssl_discovery.pth`` goes beside the package: Python runs its line when it starts.
(Python 3.18 will stop reading such lines; ``nnunet_ssl env`` prints a variable that does the same.)
"""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

HERE = Path(__file__).parent
MAPPED = {"nnunet_ssl.trainers": "trainers", "nnunet_ssl.plans": "plans"}
PTH = "nnunet_ssl_discovery.pth"
TRITON = "triton>=3.3; sys_platform == 'linux'"  # CUDA builds of torch bring it
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "nnunet_ssl" / "__init__.py").read_text(encoding="utf-8")).group(1)


class BuildWithPth(build_py):
    """Puts the .pth file at the top of a wheel; named among the outputs, it is also removed by pip uninstall."""

    def run(self):
        super().run()
        if not self.editable_mode:
            self.copy_file(str(HERE / PTH), self._target())

    def get_outputs(self, include_bytecode=True):
        return [*super().get_outputs(include_bytecode), *([] if self.editable_mode else [self._target()])]

    def _target(self):
        return str(Path(self.build_lib) / PTH)


class _AddPth:
    """A strategy of an editable install that adds the .pth file to what it wraps."""

    def __init__(self, strategy):
        self.strategy = strategy

    def __enter__(self):
        self.strategy.__enter__()
        return self

    def __exit__(self, *error):
        return self.strategy.__exit__(*error)

    def __call__(self, wheel, files, mapping):
        self.strategy(wheel, files, mapping)
        wheel.writestr(PTH, (HERE / PTH).read_text(encoding="utf-8"))


class EditableWithPth(editable_wheel):
    """The same for ``pip install -e``, whose wheel does not take build_py's files."""

    def _select_strategy(self, *args, **kwargs):
        return _AddPth(super()._select_strategy(*args, **kwargs))


setup(
    name="nnunet_ssl",
    version=VERSION,
    description="Voxel-level self-supervised pretraining (vox2vec) as trainers of stock nnU-Net v2",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    # The discovery folder holds one file and no __init__.py: nnU-Net reads it as a folder of modules.
    packages=[*find_packages(include=["nnunet_ssl", "nnunet_ssl.*"]), "nnunet_ssl.discovery", *MAPPED],
    package_dir={"nnunet_ssl": "nnunet_ssl", **MAPPED},
    py_modules=["_nnunet_ssl_boot"],
    package_data={
        name: ["*.json"]
        for name in (
            "nnunet_ssl.plans",
            "nnunet_ssl.bench.tasks",
            "nnunet_ssl.bench.protocols",
            "nnunet_ssl.bench.published",
        )
    },
    install_requires=[
        "nnunetv2>=2.8,<2.9",
        "torch>=2.1.2",
        "batchgenerators",
        "acvl-utils",
        "SimpleITK",
        "numpy",
        "nibabel",
        "scipy",
        "blosc2",
        "matplotlib",
        "tqdm",
        "tomli; python_version < '3.11'",
    ],
    extras_require={
        "bench": ["surface-distance", "scipy<2"],
        "slurm": ["submitit"],
        "fused": [TRITON],
        "dev": ["pytest", "pytest-xdist", "pytest-timeout", "ruff", "mypy", "setuptools", "wheel", TRITON],
    },
    entry_points={"console_scripts": ["nnunet_ssl = nnunet_ssl.cli.main:main"]},
    cmdclass={"build_py": BuildWithPth, "editable_wheel": EditableWithPth},
)
