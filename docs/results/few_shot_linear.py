"""The linear fits of few_shot_hippocampus.md: frozen voxel vectors, N labelled cases, every test case.

    python docs/results/few_shot_linear.py 804 -p nnssl_tinyPlans --out linear.csv \\
        --network vox2vec=.../checkpoint_final.pth --network untrained=

A multinomial logistic regression on the vectors of up to 2,000 voxels a class and 20,000 of the background, from the
cases that ``ssl.labelled`` gives the other arms: no augmentation, no steps, nothing chosen. All heads of a network read
the same pass over a test case. A row a network, number of cases, draw and subject: hard Dice by class on the original
grid, which has to be the plan's (1 mm here): nothing is resampled.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import torch
from linear_probe import backbone
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.heads import LinearHead
from nnunet_ssl.nnunet.datasets import load_json
from nnunet_ssl.nnunet.dense import dense_map, levels_reader
from nnunet_ssl.nnunet.downstream.sampling import choose_cases
from nnunet_ssl.nnunet.linear_fit import collect_voxels, fit_linear, to_head
from nnunet_ssl.nnunet.network import pyramid_channels, pyramid_strides
from nnunet_ssl.nnunet.scoring import dice

NUMBERS, DRAWS = (1, 2, 5, 10), range(5)


class Data:
    """Preprocessed training cases, and test cases as nnU-Net's preprocessor makes them."""

    def __init__(self, number: int, plans: str) -> None:
        name = convert_id_to_dataset_name(number)
        self.raw, folder = Path(nnUNet_raw) / name, Path(nnUNet_preprocessed) / name
        self.plans_file = folder / f"{plans}.json"
        self.plans = PlansManager(str(self.plans_file))
        self.configuration = self.plans.get_configuration("3d_fullres")
        self.json = load_json(folder / "dataset.json")
        self.labels = {name: value for name, value in self.json["labels"].items() if value > 0}
        self.train = json.loads((folder / "splits_final.json").read_text())[1]["train"]  # those of fold 1
        self.cases = nnUNetDatasetBlosc2(str(folder / self.configuration.data_identifier))
        self.patch = [int(p) for p in self.configuration.patch_size]

    def labelled(self, case: str) -> tuple[np.ndarray, np.ndarray]:
        image, labels, *_ = self.cases.load_case(case)
        return np.asarray(image[:]), np.asarray(labels[:])[0]

    def test(self) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """(case, image (C, z, y, x), labels (z, y, x) on the grid of the image)."""
        preprocessor, rows = self.configuration.preprocessor_class(verbose=False), []
        for path in sorted((self.raw / "labelsTs").glob("*.nii.gz")):
            image = str(self.raw / "imagesTs" / path.name.replace(".nii.gz", "_0000.nii.gz"))
            data, labels, _ = preprocessor.run_case([image], str(path), self.plans, self.configuration, self.json)
            reader = self.plans.image_reader_writer_class()
            whole = reader.read_seg(str(path))[0][0].transpose(self.plans.transpose_forward)
            if labels[0].shape != whole.shape or not np.array_equal(np.maximum(labels[0], 0), whole):
                raise SystemExit(f"{path.name}: the plan crops or resamples; expected the image's own grid")
            rows.append((path.name.removesuffix(".nii.gz"), np.asarray(data), whole))
        return rows


def fits(data: Data, network: torch.nn.Module) -> tuple[list[tuple[int, int]], LinearHead]:
    """(N, draw) of every fit, and one head with the outputs of all of them, one after the other."""
    classes, strides = len(data.labels) + 1, pyramid_strides(network)
    keys, weights, biases = [(n, draw) for n in NUMBERS for draw in DRAWS], [], []
    for n, draw in keys:
        chosen = choose_cases(data.train, {"n": n, "draw": draw})
        sample = collect_voxels(
            levels_reader(network), strides, map(data.labelled, chosen), data.patch, classes, np.random.default_rng(0),
            num_cases=n, per_class=2000, background=20000, max_windows=None,
        )  # fmt: skip
        weight, bias = fit_linear(sample.features, sample.labels, classes, sample.weights)
        weights, biases = [*weights, weight], [*biases, bias]
    head = LinearHead(pyramid_channels(network), strides, classes * len(keys))
    to_head(torch.cat(weights), torch.cat(biases), head)
    return keys, head


@torch.no_grad()
def rows_of(data: Data, name: str, checkpoint: str, test: list[tuple[str, np.ndarray, np.ndarray]]) -> list[dict]:
    network, _ = backbone(data.plans_file, Path(checkpoint) if checkpoint else None)
    read, (keys, head) = levels_reader(network), fits(data, network)

    def labels_of(x: torch.Tensor) -> torch.Tensor:
        return head([level.float() for level in read(x)]).unflatten(1, (len(keys), -1)).argmax(2)

    rows = []
    for case, image, truth in test:
        found = dense_map(labels_of, image, data.patch, step=0.5, dtype=torch.int16).numpy()
        for (n, draw), guess in zip(keys, found, strict=True):
            scores = {label: dice(truth == value, guess == value) for label, value in data.labels.items()}
            rows.append({"network": name, "labelled": n, "draw": draw, "subject": case, **scores})
    print(name, {n: round(float(np.mean([np.mean([row[x] for x in data.labels]) for row in rows
                                         if row["labelled"] == n])), 3) for n in NUMBERS}, flush=True)  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=int)
    parser.add_argument("-p", "--plans", required=True)
    parser.add_argument("--network", action="append", required=True, help="NAME=CHECKPOINT; NAME= for random weights")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    data = Data(args.dataset, args.plans)
    test = data.test()
    rows = [row for text in args.network for row in rows_of(data, *text.split("=", 1), test)]
    with args.out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
