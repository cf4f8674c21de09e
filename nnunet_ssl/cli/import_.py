"""``nnunet_ssl import``: unlabelled scans become an ordinary nnU-Net raw dataset."""

from __future__ import annotations

import argparse
from typing import Any

from nnunet_ssl.cli.plan import device_option

NAME = "import"
HELP = "Turn unlabelled scans (NIfTI, NRRD, MHA, DICOM) into an nnU-Net raw dataset."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="files, folders or globs")
    parser.add_argument("-d", "--dataset-id", type=int, required=True, help="number of the new dataset")
    parser.add_argument("-n", "--name", required=True, help="its name, e.g. MyCT")
    parser.add_argument(
        "--channel", dest="channels", action="append", default=[], metavar="NAME",
        help="name of a channel as in dataset.json, CT for images in HU; repeat it for several channels",
    )
    parser.add_argument("--from", dest="from_dataset", metavar="ID", help="take the training images of a raw dataset")
    parser.add_argument("--exclude", metavar="FILE", help="text file with cases to leave out, one a line")
    parser.add_argument("--copy", action="store_true", help="copy the files instead of linking to them")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace the raw dataset that has this number; its preprocessed data goes, plans stay")
    parser.add_argument("-np", "--num-processes", type=int, default=None, metavar="N",
                        help="worker processes (default: nnUNet_def_n_proc or 8, at most the number of cores)")


def run(args: argparse.Namespace) -> int:
    """Import, summarise, and say what comes next."""
    from nnunet_ssl.nnunet.datasets import processes
    from nnunet_ssl.nnunet.importing import ImportRequest, import_dataset

    number = processes() if args.num_processes is None else max(0, args.num_processes)
    imported = import_dataset(ImportRequest(
        args.sources, args.dataset_id, args.name, args.channels, args.copy, args.overwrite, args.from_dataset,
        args.exclude, number,
    ))
    print(f"{imported.folder}: {len(imported.report['imported'])} cases")
    for line in [*imported.notes, *summary(imported.report)]:
        print(f"  {line}")
    is_ct = any(name.casefold() == "ct" for name in imported.report["channels"])
    preset = "tiny" if device_option() else "vox2vec" if is_ct else "nnunet"
    print(f"\nNext:\n  nnunet_ssl plan -d {args.dataset_id} --preset {preset} --preprocess")
    return 0


def summary(report: dict[str, Any]) -> list[str]:
    """What the user should know about an import, a line each."""
    from nnunet_ssl.nnunet.import_report import REPORT, reasons

    shares = sorted(row["foreground"] for row in report["imported"].values())
    lines = [f"foreground {shares[0]:.1%} to {shares[-1]:.1%} of a volume, median {shares[len(shares) // 2]:.1%}"]
    for reason, names in reasons(report):
        lines.append(f"skipped {len(names)} ({_some(names)}): {reason}")
    if report["excluded"]:
        lines.append(f"excluded {len(report['excluded'])}: {_some(report['excluded'])}")
    if report["excluded_not_found"]:
        missing = report["excluded_not_found"]
        lines.append(f"WARNING: {len(missing)} lines of the exclusion file name no case here: {_some(missing)}")
    for names in report["identical"]:
        lines.append(f"identical volumes: {', '.join(names)}")
    warned = report["warnings"]
    lines += [f"warning, {name}: {text}" for name, texts in list(warned.items())[:5] for text in texts]
    if len(warned) > 5:
        lines.append(f"... and warnings for {len(warned) - 5} more cases")
    if len(report["orientations"]) > 1:
        kinds = ", ".join(f"{number} {code}" for code, number in report["orientations"].items())
        lines.append(f"mixed orientations ({kinds}): nnU-Net will read with NibabelIOWithReorient")
    return [*lines, f"details in {REPORT}"]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f", ... {len(names) - 5} more" if len(names) > 5 else "")


if __name__ == "__main__":
    import sys

    from nnunet_ssl.cli.main import main

    sys.exit(main([NAME, *sys.argv[1:]]))
