"""A generator of clothes after twenty minutes: Fashion-MNIST, judged by a classifier that learned from real pictures.

    python benchmarks/fashion_prior.py [--folder FOLDER] [--out benchmarks/fashion_prior]

Three of the five commands, by their jobs and the recipes: `smalti train` (recipes/fashion-mnist.yaml), `smalti
tokenize`, `smalti train-prior` (recipes/priors/fashion-mnist.yaml), all on the training split. The prior's budget is
counted in processor time of two threads, 40 core-minutes for 20 minutes, so that waiting for other work on the machine
does not count; the tokenizer's time is stated beside it. What FOLDER has already is not made again.

Checkpoints on the way are kept, and each is judged: bits on held-out images, and 100 samples a class. The last one
within the budget is the result, and is judged by 200 samples a class at several guidances. The judge is a small CNN,
trained on the real training split, and it is asked:

accuracy    does it see the class that was asked for; beside it, its accuracy on the real test split, and on that split
            after the tokenizer, which no prior can be expected to pass
diversity   mean distance of two pictures of a class in the judge's features, over that of the real test split
nearest     median distance, in pixels, to the nearest picture of the training split, over that of the test split's
            reconstructions: far below 1, the prior would have learned pictures by heart
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from report import Terms, beginning, facts, write
from torch import nn

from smalti.cli.parsing import parse_config
from smalti.cli.train import parse
from smalti.data import open_images
from smalti.jobs.sample import prior_and_tokenizer, to_tokens
from smalti.jobs.tokenize import TokenizeConfig, tokenize
from smalti.jobs.train import train
from smalti.jobs.train_prior import TrainPriorConfig, train_prior
from smalti.priors import SamplingConfig
from smalti.training import list_checkpoints
from smalti.training.progress import Lines, Reporter

matplotlib.use("Agg")
from matplotlib import pyplot

THREADS, MINUTES, AIM = 2, 20, 0.90
CLASSES, EPOCHS = 10, 2
ON_THE_WAY, AT_THE_END = 100, 200
"""Samples a class of a checkpoint, and of the last one within the budget."""
GUIDANCE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
"""The result is judged with each; the curve has the default, 1.5."""
BATCH = 100


# ---- training -------------------------------------------------------------------------------------------------------


class Keeper(Reporter):
    """Hears of a run, counts its processor time and keeps every checkpoint that it makes."""

    def __init__(self, run: Path, kept: Path):
        self.run, self.kept, self.lines = run, kept, Lines(sys.stderr)
        self.times: dict[int, float] = {}

    def start(self, steps, done):
        self.begin = time.process_time()
        self.lines.start(steps, done)

    def step(self, step):
        self.keep()
        self.times[step] = (time.process_time() - self.begin) / THREADS / 60
        self.lines.step(step)

    def log(self, line):
        self.lines.log(line)

    def note(self, text):
        self.lines.note(text)

    def close(self):
        self.keep()
        self.lines.close()

    def keep(self):
        """Copy the newest checkpoint's averaged weights, if they are not there yet."""
        for path in list_checkpoints(self.run / "checkpoints")[-1:]:
            copy = self.kept / path.name
            if not copy.exists():
                copy.mkdir(parents=True)
                for name in ("config.json", "model.safetensors"):
                    shutil.copy2(path / name, copy / name)
                shutil.copytree(self.run / "tokenizer", copy / "tokenizer")
                minutes = self.times[int(path.name)]
                (copy / "minutes.json").write_text(json.dumps(minutes))


def make(folder: Path, recipes: Path) -> dict[str, float]:
    """Tokenizer, tokens and prior, as far as FOLDER lacks them; minutes of each on two cores."""
    minutes_file = folder / "minutes.json"
    minutes = json.loads(minutes_file.read_text()) if minutes_file.exists() else {}

    def timed(name, job):
        if name not in minutes:
            begin = time.process_time()
            job()
            minutes[name] = (time.process_time() - begin) / THREADS / 60
            minutes_file.write_text(json.dumps(minutes))

    run = [f"--config={recipes}/fashion-mnist.yaml", "--data=fashion-mnist:train", f"--out={folder}/tok", "--force"]
    timed("tokenizer", lambda: train(parse(run), Lines(sys.stderr)))
    timed("tokens", lambda: tokenize(TokenizeConfig(f"{folder}/tok", "fashion-mnist:train", f"{folder}/tokens")))
    run = [f"--config={recipes}/priors/fashion-mnist.yaml", f"--tokens={folder}/tokens", f"--out={folder}/prior"]
    config = parse_config(TrainPriorConfig, [*run, "--force"], prog="smalti train-prior")
    timed("prior", lambda: train_prior(config, Keeper(folder / "prior", folder / "kept")))
    return minutes


# ---- the judge ------------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """A small CNN for grey pictures of 28 x 28: `features` (B, 128), then ten logits."""

    def __init__(self):
        super().__init__()
        layers = []
        for inside, outside in ((1, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 9, 128), nn.ReLU())
        self.head = nn.Linear(128, CLASSES)

    def forward(self, image):
        return self.head(self.features(image))


def real(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All pictures (N, 1, 28, 28) of a split as uint8, and their classes (N,)."""
    source = open_images(f"fashion-mnist:{split}", channels=1)
    pixels = np.stack([source.load(i) for i in range(len(source))])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor([source.label(i) for i in range(len(source))])


def scaled(pixels):
    return pixels.float() / 127.5 - 1


def trained_classifier(pixels, labels, path: Path, batch=128) -> Classifier:
    torch.manual_seed(0)
    model = Classifier().train()
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    steps = EPOCHS * (len(pixels) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.cat([torch.randperm(len(pixels)) for _ in range(EPOCHS)])
    for rows in order.split(batch)[:steps]:
        loss = F.cross_entropy(model(scaled(pixels[rows])), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    torch.save(model.state_dict(), path)
    return model.eval()


class Judge:
    """The classifier, and the real pictures that it compares with."""

    def __init__(self, tokenizer, classifier: Path):
        self.train_pixels, train_labels = real("train")
        self.test_pixels, self.test_labels = real("test")
        self.classifier = trained_classifier(self.train_pixels, train_labels, classifier)
        again = [tokenizer.decode(tokenizer.encode(part)) for part in self.test_pixels.split(BATCH)]
        reconstructed = torch.cat(again)
        self.spread = self._spread(self.test_pixels, self.test_labels)
        some = reconstructed[: CLASSES * AT_THE_END]
        self.nearest = float(self._nearest(some).median())
        self.test = self.scores(self.test_pixels, self.test_labels)
        self.reconstructed = self.scores(reconstructed, self.test_labels)

    @torch.no_grad()
    def scores(self, pixels, labels) -> dict:
        """Accuracy, of all and of each class, and diversity, of pictures (N, 1, 28, 28) in uint8."""
        seen = torch.cat([self.classifier(scaled(part)).argmax(1) for part in pixels.split(500)])
        right = (seen == labels).float()
        of_class = [round(float(right[labels == label].mean()), 4) for label in range(CLASSES)]
        diversity = [ours / theirs for ours, theirs in zip(self._spread(pixels, labels), self.spread, strict=True)]
        return {
            "accuracy": round(float(right.mean()), 4),
            "accuracy_of_class": of_class,
            "diversity": round(float(np.mean(diversity)), 3),
            "diversity_of_class": [round(each, 3) for each in diversity],
        }

    def relative_nearest(self, pixels) -> float:
        """Median distance to the nearest picture of the training split, over that of reconstructions of the test."""
        return round(float(self._nearest(pixels).median()) / self.nearest, 3)

    @torch.no_grad()
    def _spread(self, pixels, labels) -> list[float]:
        """Mean distance of two pictures of a class in the classifier's features."""
        features = torch.cat([self.classifier.features(scaled(part)) for part in pixels.split(500)])
        return [float(F.pdist(features[labels == label]).mean()) for label in range(CLASSES)]

    def _nearest(self, pixels):
        others = scaled(self.train_pixels).flatten(1)
        return torch.cat([torch.cdist(scaled(part).flatten(1), others).amin(1) for part in pixels.split(BATCH)])


# ---- samples --------------------------------------------------------------------------------------------------------


def drawn(folder: Path, count: int, config: SamplingConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """So many pictures a class of a prior (N, 1, 28, 28) in uint8, and the classes that were asked for."""
    prior, tokenizer, _ = prior_and_tokenizer(folder)
    labels = torch.arange(CLASSES).repeat(count)
    generator = torch.Generator().manual_seed(0)
    pixels = [
        tokenizer.decode(to_tokens(prior.sample(part, config, generator=generator), prior.layout))
        for part in labels.split(BATCH)
    ]
    return torch.cat(pixels), labels


def judged(folder: Path) -> dict:
    """Judge every kept checkpoint, then the last one within the budget with each guidance."""
    _, tokenizer, names = prior_and_tokenizer(folder / "prior")
    judge = Judge(tokenizer, folder / "classifier.pt")
    log = [json.loads(line) for line in (folder / "prior" / "log.jsonl").read_text().splitlines()]
    bits = {line["step"]: line for line in log if "validation_bits_per_token" in line}
    curve = []
    for kept in sorted((folder / "kept").iterdir()):
        scores = judge.scores(*drawn(kept, ON_THE_WAY, SamplingConfig()))
        step, minutes = int(kept.name), json.loads((kept / "minutes.json").read_text())
        row = {
            "step": step,
            "minutes": round(minutes, 2),
            "bits_per_token": round(bits[step]["validation_bits_per_token"], 4),
            "bits_per_pixel": round(bits[step]["validation_bits_per_pixel"], 4),
            "accuracy": scores["accuracy"],
            "diversity": scores["diversity"],
        }
        curve.append(row)
        print(row, flush=True)
    chosen = max((row for row in curve if row["minutes"] <= MINUTES), key=lambda row: row["step"])
    rows = []
    for guidance in GUIDANCE:
        kept = folder / "kept" / f"{chosen['step']:06d}"
        pixels, labels = drawn(kept, AT_THE_END, SamplingConfig(guidance=guidance))
        rows.append({"guidance": guidance, **judge.scores(pixels, labels), "nearest": judge.relative_nearest(pixels)})
        print(rows[-1], flush=True)
        if guidance == SamplingConfig().guidance:
            picture = pixels[: 10 * CLASSES]
    weights = sum(p.numel() for p in prior_and_tokenizer(folder / "prior")[0].parameters())
    numbers = {"test": judge.test, "reconstructed": judge.reconstructed, "result": chosen, "samples": rows}
    return {"classes": list(names), "prior_weights": weights, **numbers, "curve": curve}, picture


# ---- what is written ------------------------------------------------------------------------------------------------


TERMS = Terms(
    compared="Samples of a prior for Fashion-MNIST, by `recipes/fashion-mnist.yaml` (tokenizer) and "
    "`recipes/priors/fashion-mnist.yaml` (prior), with the real test split, by a classifier that learned from real "
    "pictures; what is measured and how is said at the top of `benchmarks/fashion_prior.py`. No other generator takes "
    "part.",
    number_format="As `smalti train` and `smalti train-prior` choose: bf16 where the processor multiplies it, else "
    "fp32; sampling and judging in fp32.",
    layout="Channels last in the tokenizer.",
    threads=f"{THREADS}; minutes are processor time over {THREADS}.",
    tuning="Settings of the recipes were compared on Fashion-MNIST with the same judge before (LOG.md). The default "
    "guidance was chosen before this run; the table has the others.",
    not_shown="That samples with guidance are better than real pictures. Nor how this prior stands beside others, or "
    "what it does with photographs.",
)


def markdown(result: dict) -> str:
    chosen = result["result"]
    plain = next(row for row in result["samples"] if row["guidance"] == 0)
    best = next(row for row in result["samples"] if row["guidance"] == SamplingConfig().guidance)
    real_accuracy, again, minutes = result["test"]["accuracy"], result["reconstructed"], result["minutes"]
    lines = [
        *beginning("Clothes after twenty minutes", TERMS, result),
        f"Of {AT_THE_END * CLASSES} samples the classifier sees as what was asked for, and the diversity of each class "
        "over that of real pictures:",
        "",
        f"- without guidance **{plain['accuracy']:.1%}**, diversity **{plain['diversity']:.2f}**;",
        f"- with the default guidance of 1.5 **{best['accuracy']:.1%}**, diversity **{best['diversity']:.2f}**.",
        "",
        f"The classifier is right on {real_accuracy:.1%} of the real test split, and on {again['accuracy']:.1%} of it "
        f"after the tokenizer. Over the first the samples' ratios are {plain['accuracy'] / real_accuracy:.3f} and "
        f"{best['accuracy'] / real_accuracy:.3f} (aim with guidance: {AIM}). Guidance buys accuracy with diversity: "
        "what lies above real pictures are typical pictures, not better ones.",
        "",
        f"That is the prior ({result['prior_weights'] / 1e6:.1f} M weights) after step {chosen['step']}, "
        f"{chosen['minutes']:.1f} minutes on {THREADS} cores in processor time, its checkpoints included; on held-out "
        f"images {chosen['bits_per_token']:.3f} bits a token, {chosen['bits_per_pixel']:.4f} bits a pixel. Before it, "
        f"the tokenizer took {minutes['tokenizer']:.1f} minutes and the tokens {minutes['tokens']:.1f}.",
        "",
        "![the curve, and samples of every class](fashion_prior.png)",
        "",
        "| pictures | guidance | accuracy | over real | diversity | nearest |",
        "|---|---|---|---|---|---|",
        f"| real test split | | {real_accuracy:.3f} | 1 | 1 | |",
        f"| the same after the tokenizer | | {again['accuracy']:.3f} | {again['accuracy'] / real_accuracy:.3f} "
        f"| {again['diversity']:.2f} | 1 |",
    ]
    for row in result["samples"]:
        lines.append(
            f"| samples | {row['guidance']} | {row['accuracy']:.3f} | {row['accuracy'] / real_accuracy:.3f} "
            f"| {row['diversity']:.2f} | {row['nearest']:.2f} |"
        )
    lines += ["", "| class | real | samples | diversity |", "|---|---|---|---|"]
    for k, name in enumerate(result["classes"]):
        lines.append(
            f"| {name} | {result['test']['accuracy_of_class'][k]:.3f} | {best['accuracy_of_class'][k]:.3f} "
            f"| {best['diversity_of_class'][k]:.2f} |"
        )
    lines += ["", f"On the way, {ON_THE_WAY} samples a class:", ""]
    lines += ["| minutes | step | bits a token | bits a pixel | accuracy | diversity |", "|---|---|---|---|---|---|"]
    for row in result["curve"]:
        lines.append(
            f"| {row['minutes']:.1f} | {row['step']} | {row['bits_per_token']:.3f} | {row['bits_per_pixel']:.3f} "
            f"| {row['accuracy']:.3f} | {row['diversity']:.2f} |"
        )
    return "\n".join([*lines, ""])


def plot(result: dict, picture: torch.Tensor, path: Path) -> None:
    """The curve on the left, ten samples of every class on the right."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    minutes = [row["minutes"] for row in result["curve"]]
    left.plot(minutes, [row["accuracy"] for row in result["curve"]], "o-", label="samples seen as what was asked for")
    left.axhline(result["test"]["accuracy"], color="gray", ls="--", label="real test split")
    left.axhline(AIM * result["test"]["accuracy"], color="gray", ls=":", label=f"{AIM:.0%} of that")
    left.set(xlabel=f"minutes on {THREADS} cores", ylabel="accuracy", ylim=(0, 1))
    left.legend(loc="lower right")
    bits = left.twinx()
    bits.plot(minutes, [row["bits_per_token"] for row in result["curve"]], "s-", color="tab:orange", ms=4)
    bits.set_ylabel("bits a token on held-out images", color="tab:orange")
    grid = picture.reshape(10, CLASSES, 28, 28).permute(1, 2, 0, 3).reshape(CLASSES * 28, 10 * 28)
    right.imshow(grid.numpy(), cmap="gray")
    right.set_yticks([14 + 28 * k for k in range(CLASSES)], result["classes"])
    right.set_xticks([])
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path("fashion-prior"), help="for tokenizer, tokens and prior")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/fashion_prior"))
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    options.folder.mkdir(exist_ok=True)
    minutes = make(options.folder, Path("recipes"))
    numbers, picture = judged(options.folder)
    result = {**facts(), "minutes": minutes, **numbers}
    write(options.out, result, markdown(result))
    plot(result, picture, options.out.with_suffix(".png"))
    print(markdown(result))


if __name__ == "__main__":
    main()
