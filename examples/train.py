"""Trains the recipe `quickstart` from Python and reads its metrics as arrays.

    python examples/train.py [SECTION.KEY=VALUE ...]

Half a minute on two CPU cores; the images ship with the package. The run directory is the one that
`rescue train --recipe quickstart` makes, for `rescue report` and `rescue train --resume`.
"""

import sys

import rescue_cli as rescue


def main() -> None:
    recipe = rescue.load("quickstart", sys.argv[1:])
    run = rescue.train(recipe, progress=True)

    steps, tests = run.metrics("train"), run.metrics("eval")
    print(f"training loss: {steps['loss'][0]:.3f} at first, {steps['loss'][-1]:.3f} at the end")
    for epoch, top1 in zip(tests["epoch"], tests["top1"], strict=True):
        print(f"epoch {epoch:g}: top-1 {top1:.2f} %")
    print(f"{run.path}: top-1 {run.result['top1']:.2f} % on {run.result['count']} test images")


if __name__ == "__main__":
    main()
