"""A finished run, as a run of MLflow: settings as parameters, the log as metrics, the report as an artefact.

    python examples/to_mlflow.py runs/first      # where: MLFLOW_TRACKING_URI
"""

import math
import re
import sys

import gems_engine
import mlflow
from mlflow.entities import Metric


def name(key):
    """MLflow has no @ in the names of metrics: ndcg@10 becomes ndcg.at.10."""
    return re.sub(r"[^\w\-. /:]", ".", key.replace("@", ".at."))


def main():
    run = gems_engine.Run(sys.argv[1])
    mlflow.set_experiment("gems-engine")
    with mlflow.start_run(run_name=run.path.name) as record:
        mlflow.log_params({key: str(value)[:500] for key, value in run.settings.items()})
        client, batch = mlflow.MlflowClient(), []
        for line in run.lines:
            values = ((key, value) for key, value in line.items() if isinstance(value, (int, float)))
            batch += [Metric(name(key), float(value), 0, line["step"]) for key, value in values if key != "step"]
        for first in range(0, len(batch), 1000):  # a batch has at most 1000
            client.log_batch(record.info.run_id, metrics=batch[first : first + 1000])
        for task, metrics in run.result["after"].items():
            numbers = {k: v for k, v in metrics.items() if isinstance(v, float) and math.isfinite(v)}
            mlflow.log_metrics({name(f"test.{task}.{key}"): value for key, value in numbers.items()})
        mlflow.log_artifact(str(run.path / "report.html"))


main()
