"""``nnunet_ssl features``: dense feature maps of an image."""

from __future__ import annotations

import argparse

NAME = "features"
HELP = "write the dense features of an image under a pretrained checkpoint, on the network's grid"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("-i", nargs="+", required=True, metavar="IMAGE", help="one file a channel, in training order")
    parser.add_argument("-w", required=True, metavar="CHECKPOINT", help="checkpoint_final.pth of a pretraining")
    parser.add_argument("-o", required=True, metavar="OUT", help="NAME.nii.gz: a vector a voxel")
    parser.add_argument("--levels", nargs="+", type=int, help="pyramid levels, 0 the finest (default: all)")
    parser.add_argument("--pca", type=int, metavar="K", help="also NAME_pca.nii.gz: K components, uint8 (3: RGB)")
    parser.add_argument("--fp16", action="store_true", help="NAME.npy (float16) and NAME.json; NIfTI has no half")
    parser.add_argument("--step", type=float, default=0.5, help="window step in patches (default: 0.5)")
    parser.add_argument("--stitch", choices=("core", "gaussian"), default="core",
                        help="a voxel from the window that is centred nearest, or a weighted mean")  # fmt: skip
    parser.add_argument("-device", default=None, help="cpu, cuda or mps (default: cuda where there is one)")


def run(args: argparse.Namespace) -> int:
    """Write the files and say which."""
    import torch

    from nnunet_ssl.errors import UserError
    from nnunet_ssl.nnunet.features import write_features

    if not 0 < args.step <= 1:
        raise UserError(f"--step is {args.step}; expected a fraction of the patch in (0, 1].")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    written = write_features(args.i, args.w, args.o, levels=args.levels, pca=args.pca, fp16=args.fp16, step=args.step,
                             stitch=args.stitch, device=device)  # fmt: skip
    for path in written:
        print(f"wrote {path}")
    print(f"\nNext, for a labelled dataset:\n  nnunet_ssl adapt -d ID -w {args.w} --preprocess")
    return 0
