"""The module against the real program: GEMS_ENGINE=target/release/gems-engine python3 -m unittest discover python/tests"""

import tempfile
import unittest
from pathlib import Path

import gems_engine

FAST = {
    "train.evaluate_before": False, "train.evaluate_after": False, "train.validate_every": 0, "train.export": False,
    "null_space.tokens": 512,
}


class Module(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.steps = []
        out = Path(cls.folder.name) / "run"
        cls.run_ = gems_engine.train(out=out, steps=3, settings=FAST, progress=cls.steps.append)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_progress_comes_step_by_step_and_is_what_the_log_keeps(self):
        self.assertEqual([step["step"] for step in self.steps], [1, 2, 3])
        metrics = self.run_.metrics
        losses = metrics["loss"].tolist() if hasattr(metrics, "columns") else [line["loss"] for line in metrics]
        self.assertEqual(losses, [step["loss"] for step in self.steps])

    def test_a_ranker_answers_many_and_goes_on_after_a_refusal(self):
        with self.run_.ranker() as ranker:
            first = ranker.rank(["samba", "curling"], "small dog", top=3)
            self.assertEqual(len(first), 3)
            self.assertEqual(sorted(first, key=lambda row: -row["log_likelihood"]), first)
            with self.assertRaises(gems_engine.EngineError) as refused:
                ranker.rank(["smaba"], "small dog")
            self.assertIn("samba", str(refused.exception))
            only = ranker.rank(["samba"], "small dog", among=["wolfhound", "samba"], exclude_history=True)
            self.assertEqual([row["item"] for row in only], ["wolfhound"])
        self.assertEqual(self.run_.rank(["samba", "curling"], "small dog", top=3), first)

    def test_errors_say_what_where_and_what_to_do(self):
        with self.assertRaises(gems_engine.EngineError) as refused:
            gems_engine.train(out=self.run_.path, steps=1)
        self.assertEqual(refused.exception.exit_code, 2)
        self.assertIn("already holds a run", refused.exception.what)
        self.assertIn("--out", refused.exception.remedy)
        with self.assertRaises(gems_engine.EngineError) as unknown:
            gems_engine.train(out=Path(self.folder.name) / "other", settings={"gems.rnak": 3})
        self.assertIn("gems.rank", str(unknown.exception))
        with self.assertRaises(gems_engine.EngineError):
            gems_engine.Run(self.folder.name)

    def test_a_notebook_shows_the_report_or_the_name(self):
        shown = self.run_._repr_html_()
        self.assertTrue(shown.startswith("<iframe") or "Run(" in shown)


if __name__ == "__main__":
    unittest.main()
