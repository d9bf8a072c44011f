"""Trains two recipes with the same seeds and says what may be claimed of their difference.

    python examples/compare.py [SECTION.KEY=VALUE ...]

Two minutes on two CPU cores: quickstart with and without label smoothing, three seeds of each,
shortened to two epochs. Started again, it continues with the missing runs.
"""

import sys

import rescue_cli as rescue

RECIPES = {"smoothed": "loss.label_smoothing=0.1", "plain": "loss.label_smoothing=0.0"}
SEEDS = range(3)


def main() -> None:
    for name, change in RECIPES.items():
        for seed in SEEDS:
            changes = [change, f"train.seed={seed}", *sys.argv[1:]]
            recipe = rescue.load("quickstart", changes, epochs=2)
            run = rescue.train(recipe, out=f"runs/smoothing/{name}/seed-{seed}", resume=True)
            print(f"{run.path}: top-1 {run.result['top1']:.2f} %")

    comparison = rescue.compare("runs/smoothing/plain", "runs/smoothing/smoothed", want=0.5)
    for side in comparison["sides"]:
        print(f"{side['name']}: {side['mean']:.2f} ± {side['std']:.2f} % ({side['n']} runs)")
    print(comparison["claim"])


if __name__ == "__main__":
    main()
