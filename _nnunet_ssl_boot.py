"""Runs when Python starts (``nnunet_ssl_discovery.pth``): nnU-Net finds our trainers without a variable to export.

Appends ``nnunet_ssl/discovery`` to ``nnUNet_extTrainer``, behind what the user has there. NNUNET_SSL_DISCOVERY=0 turns
it off. It must stay cheap and silent: it runs in every process of the environment, so it imports only os.
"""

import os


def switched_off():
    return os.environ.get("NNUNET_SSL_DISCOVERY", "").strip().lower() in ("0", "f", "false", "no", "off")


def _append(variable="nnUNet_extTrainer"):
    """Whether our folder is there to be found, appended by this process or by the one that started it."""
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "nnunet_ssl", "discovery")
    if switched_off() or not os.path.isdir(folder):
        return False
    value = os.environ.get(variable, "")
    if folder not in value.split(os.pathsep):
        os.environ[variable] = value + os.pathsep + folder if value else folder
    return True


active = _append()
