"""A finished run, as a run of Weights & Biases: settings, the log step by step, test metrics, the report.

    python examples/to_wandb.py runs/first       # WANDB_MODE=offline keeps it here, for `wandb sync`
"""

import sys

import gems_engine
import wandb


def main():
    run = gems_engine.Run(sys.argv[1])
    with wandb.init(project="gems-engine", name=run.path.name, config=run.settings) as record:
        for line in run.lines:
            values = {key.replace(".", "/", 1): v for key, v in line.items() if isinstance(v, (int, float))}
            record.log(values, step=line["step"])
        for task, metrics in run.result["after"].items():
            record.summary.update({f"test/{task}.{k}": v for k, v in metrics.items() if isinstance(v, float)})
        record.log({"report": wandb.Html(str(run.path / "report.html"))})


main()
