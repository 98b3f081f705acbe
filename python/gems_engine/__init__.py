"""gems-engine from Python: functions over the program, and a run as an object.

    import gems_engine

    run = gems_engine.train(model="Qwen2.5-0.5B", data="data", out="runs/first", settings={"train.steps": 1000})
    run.metrics             # a line a step: a DataFrame where pandas is installed, else a list of dicts
    run.rank(["B0003", "B0110"], query="warm scarf", top=5)
    run                     # in a notebook: the report

Everything is done by the program `gems-engine`; nothing is imported but the standard library, and pandas where it is there.
"""

from __future__ import annotations

import html
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, Optional, Sequence, Union

__all__ = ["EngineError", "Ranker", "Run", "program", "train"]

PathLike = Union[str, "os.PathLike[str]"]


class EngineError(RuntimeError):
    """The program could not do it: what is wrong, where, and what to do about it."""

    def __init__(self, what: str, where: Optional[str], remedy: Optional[str], exit_code: int) -> None:
        text = f"{where}: {what}" if where else what
        super().__init__(f"{text}\n  try: {remedy}" if remedy else text)
        self.what = what
        self.where = where
        self.remedy = remedy
        self.exit_code = exit_code


def program() -> str:
    """Where the program is: `$GEMS_ENGINE`, beside this Python, or on the PATH."""
    given = os.environ.get("GEMS_ENGINE")
    if given:
        return given
    beside = Path(sysconfig.get_path("scripts")) / "gems-engine"
    found = str(beside) if beside.is_file() else shutil.which("gems-engine")
    if not found:
        raise FileNotFoundError("there is no program gems-engine: cargo install it, or set GEMS_ENGINE to its path")
    return found


def _failed(code: int, said: str) -> EngineError:
    """The error that the last line on standard error tells; else all that was said there."""
    try:
        error = json.loads(said.splitlines()[-1])["error"]
        return EngineError(error["what"], error["where"], error["try"], code)
    except (IndexError, KeyError, TypeError, ValueError):
        return EngineError(said.strip() or f"gems-engine ended with code {code}", None, None, code)


def _events(args: Sequence[str]) -> Iterator[Any]:
    """The lines of a command's `--json` output as they come; an EngineError where it fails."""
    # Standard error goes to a file: a pipe that nobody empties would stop the program.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            [program(), *args, "--json"], stdout=subprocess.PIPE, stderr=said, text=True, encoding="utf-8"
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield json.loads(line)
        except BaseException:
            # Ctrl-C, or a caller that has had enough: the program saves and stops.
            process.terminate()
            raise
        finally:
            process.stdout.close()
            code = process.wait()
        if code:
            said.seek(0)
            raise _failed(code, said.read())


def _result(args: Sequence[str]) -> Any:
    last = None
    for last in _events(args):
        pass
    return last


def _settings(settings: Optional[Mapping[str, Any]]) -> Iterator[str]:
    for key, value in (settings or {}).items():
        # TOML has the same lists, numbers, texts and truth values as JSON.
        yield "--set"
        yield f"{key}={json.dumps(value)}"


def train(
    model: Optional[PathLike] = None,
    data: Optional[PathLike] = None,
    out: Optional[PathLike] = None,
    *,
    steps: Optional[int] = None,
    method: Optional[str] = None,
    settings: Optional[Mapping[str, Any]] = None,
    resume: bool = False,
    device: Optional[str] = None,
    progress: Union[bool, Callable[[dict[str, Any]], None]] = True,
) -> Run:
    """Tunes `model` on `data` and returns the run; without both, the embedded demo.

    `settings` are those of `gems-engine config-schema`, such as {"gems.rank": 16}. `progress` shows a line that is renewed at
    every step, or is called with the step's metrics.
    """
    args = ["train"]
    named = {"--model": model, "--data": data, "--out": out, "--steps": steps, "--method": method, "--device": device}
    for flag, value in named.items():
        if value is not None:
            args += [flag, os.fspath(value) if isinstance(value, os.PathLike) else str(value)]
    args += ["--resume"] if resume else []
    args += _settings(settings)
    result: Any = None
    tell = progress if callable(progress) else _show if progress else None
    for event in _events(args):
        result = event
        if tell and "step" in event and "loss" in event:
            tell(event)
    if tell is _show:
        print(file=sys.stderr)
    return Run(result["run"])


def _show(step: dict[str, Any]) -> None:
    print(f"\rstep {step['step']}: loss {step['loss']:.4f}", end="", file=sys.stderr, flush=True)


class Run:
    """A run's directory."""

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        if not (self.path / "config.toml").is_file():
            raise EngineError("this is not a run directory: it has no config.toml", str(path), None, 2)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _repr_html_(self) -> str:
        report = self.path / "report.html"
        if not report.is_file():
            return html.escape(repr(self))
        page = html.escape(report.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" sandbox style="width:100%;height:40em;border:0"></iframe>'

    @property
    def result(self) -> dict[str, Any]:
        """What was measured before and after."""
        return json.loads((self.path / "result.json").read_text(encoding="utf-8"))

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by its dotted name, of a run that has finished."""
        return _result(["compare", str(self.path)])["runs"][0]["settings"]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What was logged, a line a step; lists are of the adapted layers."""
        with open(self.path / "metrics.jsonl", encoding="utf-8") as log:
            return [json.loads(line) for line in log if line.endswith("\n")]

    @property
    def metrics(self) -> Any:
        """The same as a pandas.DataFrame where pandas is installed, else the list."""
        try:
            import pandas
        except ImportError:
            return self.lines
        return pandas.DataFrame(self.lines)

    def rank(
        self,
        history: Sequence[str] = (),
        query: Optional[str] = None,
        *,
        task: Optional[str] = None,
        top: int = 10,
        exclude_history: bool = False,
    ) -> list[dict[str, Any]]:
        """The best items, best first: {"item", "text", "log_likelihood"}. It loads the model: for more than a few requests
        open a `ranker()`."""
        with self.ranker() as ranker:
            return ranker.rank(history, query, task=task, top=top, exclude_history=exclude_history)

    def ranker(self, device: Optional[str] = None) -> Ranker:
        """The run's model, loaded once for many requests."""
        return Ranker(self, device)

    def evaluate(self, against: Optional[Run] = None, *, settings: Optional[Mapping[str, Any]] = None) -> dict[str, Any]:
        """Metrics on the test records, and with `against` whether the differences are more than luck."""
        args = ["evaluate", "--run", str(self.path), *_settings(settings)]
        args += ["--against", str(against.path)] if against else []
        return _result(args)

    def export(self, out: PathLike, *, format: str = "merged") -> dict[str, Any]:
        """Writes the model for others to load: `merged` or `peft`."""
        return _result(["export", "--run", str(self.path), "--out", os.fspath(out), "--format", format])


class Ranker:
    """A loaded model that answers requests; close it, or use it in a `with`."""

    def __init__(self, run: Run, device: Optional[str] = None) -> None:
        args = [program(), "rank", "--json", "--run", str(run.path), "--batch", "-"]
        args += ["--device", device] if device else []
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True, encoding="utf-8"
        )

    def __enter__(self) -> Ranker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rank(
        self,
        history: Sequence[str] = (),
        query: Optional[str] = None,
        *,
        task: Optional[str] = None,
        top: int = 10,
        among: Optional[Iterable[str]] = None,
        exclude: Iterable[str] = (),
        exclude_history: bool = False,
    ) -> list[dict[str, Any]]:
        """The best items, best first."""
        ask = {
            "history": list(history), "query": query, "task": task, "top": top, "exclude": list(exclude),
            "among": None if among is None else list(among), "exclude_history": exclude_history,
        }
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(ask) + "\n")
            stdin.flush()
            line = stdout.readline()
        except (BrokenPipeError, ValueError):
            line = ""
        if not line:
            code = self._process.wait()
            self._said.seek(0)
            raise _failed(code, self._said.read())
        answer = json.loads(line)
        if "error" in answer:
            raise EngineError(answer["error"], None, None, 1)
        return answer["items"]

    def close(self) -> None:
        """Lets the program end."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
        self._process.wait()
        self._said.close()
