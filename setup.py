"""Packaging: ``trainers/`` and ``plans/`` are top-level folders that ship inside the package."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
MAPPED = {"nnunet_ssl.trainers": "trainers", "nnunet_ssl.plans": "plans"}

setup(
    name="nnunet_ssl",
    version="0.1.0",
    description="Voxel-level self-supervised pretraining (vox2vec, Pix2Rep) as trainers of stock nnU-Net v2",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["nnunet_ssl", "nnunet_ssl.*"]) + sorted(MAPPED),
    package_dir={"nnunet_ssl": "nnunet_ssl", **MAPPED},
    package_data={"nnunet_ssl.plans": ["*.json"]},
    install_requires=[
        "nnunetv2>=2.8,<2.9",
        "torch>=2.1.2",
        "batchgenerators",
        "acvl-utils",
        "SimpleITK",
        "numpy",
        "tqdm",
    ],
    entry_points={"console_scripts": ["nnunet_ssl = nnunet_ssl.cli.main:main"]},
)
