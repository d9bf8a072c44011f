"""Evaluates a finished run in two ways, and classifies image files with its network.

    python examples/predict.py RUN IMAGE ...

RUN is a run directory, such as `runs/quickstart/0` of `examples/train.py`. A few seconds, and an
evaluation of the run's test set. The network comes with its own preprocessing and class names.
"""

import sys

import torch

import rescue_cli as rescue


def main() -> None:
    path, *images = sys.argv[1:]
    run = rescue.open_run(path)
    flipped = rescue.evaluate(run, ["eval.tta=flip"])
    print(f"top-1 {run.result['top1']:.2f} %, {flipped.result['top1']:.2f} % with flips")

    for prediction in rescue.predict(run, images, top=1):
        best = prediction["classes"][0]
        print(f"{prediction['image']}: {best['class']}, {100 * best['probability']:.1f} %")

    # The same by hand, for a program that keeps the network in memory
    classifier = run.model()
    batch = torch.stack([classifier.preprocess(image) for image in images])  # (N, C, H, W)
    probabilities = classifier(batch)  # (N, classes)
    print([classifier.classes[index] for index in probabilities.argmax(1)])


if __name__ == "__main__":
    main()
