"""Runs when Python starts (``nnunet_ssl_discovery.pth``): nnU-Net finds our trainers without a variable to export.

Appends ``nnunet_ssl/discovery`` to ``nnUNet_extTrainer``, behind what the user has there. NNUNET_SSL_DISCOVERY=0 turns
it off. It must stay cheap and silent: it runs in every process of the environment, so it imports only os.
"""

import os


def _append(variable="nnUNet_extTrainer"):
    if os.environ.get("NNUNET_SSL_DISCOVERY", "").strip().lower() in ("0", "f", "false", "no", "off"):
        return False
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "nnunet_ssl", "discovery")
    value = os.environ.get(variable, "")
    if os.path.isdir(folder) and folder not in value.split(os.pathsep):
        os.environ[variable] = value + os.pathsep + folder if value else folder
        return True
    return False


appended = _append()
