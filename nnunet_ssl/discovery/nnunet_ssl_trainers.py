"""What ``nnUNet_extTrainer`` points at: every trainer of ``nnunet_ssl.trainers``, under its own name.

nnU-Net imports this file by its bare name whenever a trainer is looked up that is not its own, also in environments
that merely inherit the variable. It therefore never raises: a missing nnunet_ssl is passed over, and a trainer that
cannot be imported is left out with a warning. The classes are defined elsewhere, because nnU-Net forgets the modules
of this folder after each look-up, and what a forgotten module defines can not be pickled.
"""

import warnings


def _export() -> None:
    try:
        import importlib
        import pkgutil

        from nnunet_ssl import trainers
    except ImportError:
        return
    for module in pkgutil.iter_modules(trainers.__path__):
        try:
            globals()[module.name] = getattr(importlib.import_module(f"{trainers.__name__}.{module.name}"), module.name)
        except Exception as error:
            warnings.warn(f"nnunet_ssl: {module.name} is left out: {type(error).__name__}: {error}", stacklevel=2)


_export()
