"""A run in other people's tools: TensorBoard, MLflow, Weights & Biases, a notebook. What is not installed is skipped aloud:
`pip install -r python/tests/requirements.txt`."""

import importlib.util
import json
import os
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import gems_engine

ROOT = Path(__file__).resolve().parents[2]
FAST = {"null_space.tokens": 512, "train.validate_every": 2, "evaluate.general_tokens": 512}


def has(*modules):
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return unittest.skipIf(missing, f"not installed: {', '.join(missing)}")


class Tracking(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.run_ = gems_engine.train(out=Path(cls.folder.name) / "run", steps=4, settings=FAST, progress=False)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def example(self, script, **environment):
        """Runs one of examples/ on the run, in the folder."""
        variables = {**os.environ, "PYTHONPATH": str(ROOT / "python"), **environment}
        command = [sys.executable, str(ROOT / "examples" / script), str(self.run_.path)]
        done = subprocess.run(command, cwd=self.folder.name, env=variables, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)

    @has("tensorboard")
    def test_tensorboard_reads_all_that_was_written(self):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2

        events = EventAccumulator(str(self.run_.path / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
        events.Reload()
        # Newer versions turn what is old into tensors; here they are as they were written.
        losses = [event.value for event in events.Scalars("loss")]
        single = lambda number: struct.unpack("f", struct.pack("f", number))[0]
        self.assertEqual(losses, [single(line["loss"]) for line in self.run_.lines if "loss" in line])
        self.assertIn("layers/update_norm", events.Tags()["distributions"])
        for event in events.Histograms("layers/update_norm"):
            line = next(line for line in self.run_.lines if line["step"] == event.step and "layers.update_norm" in line)
            self.assertEqual(event.histogram_value.num, len(line["layers.update_norm"]))
        text = events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
        self.assertIn("| gems.rank |", text)
        start = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
        hparams = metadata.parse_session_start_info_plugin_data(start).hparams
        self.assertEqual(hparams["train.steps"].number_value, 4)
        self.assertEqual(hparams["gems.method"].string_value, "gems")
        experiment = events.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
        infos = metadata.parse_experiment_plugin_data(experiment)
        self.assertIn("valid/rec.ndcg@10", [info.name.tag for info in infos.metric_infos])
        self.assertEqual({info.name for info in infos.hparam_infos}, set(hparams))
        end = events.SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
        status = metadata.parse_session_end_info_plugin_data(end).status
        self.assertEqual(status, plugin_data_pb2.STATUS_SUCCESS if hasattr(plugin_data_pb2, "STATUS_SUCCESS") else 1)

    @has("mlflow")
    def test_mlflow_takes_a_run(self):
        store = f"sqlite:///{self.folder.name}/mlflow.db"
        try:
            import sqlalchemy  # noqa: F401
        except ImportError:
            store = f"file://{self.folder.name}/mlruns"  # the small package has no database
        self.example("to_mlflow.py", MLFLOW_TRACKING_URI=store, MLFLOW_ALLOW_FILE_STORE="true")
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=store)
        experiment = client.get_experiment_by_name("gems-engine")
        (record,) = client.search_runs([experiment.experiment_id])
        self.assertEqual(record.data.params["train.steps"], "4")
        history = {point.step: point.value for point in client.get_metric_history(record.info.run_id, "loss")}
        self.assertEqual(history, {line["step"]: line["loss"] for line in self.run_.lines if "loss" in line})
        after = self.run_.result["after"]["rec"]["ndcg@10"]
        self.assertAlmostEqual(record.data.metrics["test.rec.ndcg.at.10"], after)

    @has("wandb")
    def test_weights_and_biases_takes_a_run(self):
        self.example("to_wandb.py", WANDB_MODE="offline", WANDB_DIR=self.folder.name, WANDB_SILENT="true")
        kept = list(Path(self.folder.name).glob("wandb/offline-run-*/*.wandb"))
        self.assertEqual(len(kept), 1)

    @has("nbclient", "ipykernel", "nbformat", "pandas")
    def test_the_notebook_runs_from_top_to_bottom(self):
        import nbformat
        from nbclient import NotebookClient

        notebook = nbformat.read(ROOT / "examples" / "first-run.ipynb", as_version=4)
        variables = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = str(ROOT / "python")
        try:
            NotebookClient(notebook, timeout=300, resources={"metadata": {"path": self.folder.name}}).execute()
        finally:
            os.environ.pop("PYTHONPATH") if variables is None else os.environ.update(PYTHONPATH=variables)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        self.assertTrue(all(cell.execution_count for cell in code))
        self.assertIn("<iframe", json.dumps(code[-1].outputs))


if __name__ == "__main__":
    unittest.main()
