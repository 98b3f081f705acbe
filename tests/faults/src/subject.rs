//! What is broken: commands of the engine on tiny models, and what they leave behind.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A command, and the directory that it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A whole run: basis, measurements, validation, refreshes, checkpoints, export.
    Train,
    /// A run without anything around its steps, one checkpoint kept.
    Steps,
    /// The same by LoRA.
    Lora,
    /// The same of every weight, an encoder and decoder.
    Full,
    /// A run that was stopped halfway goes on.
    Resume,
    /// Kernels on the SIMT machine.
    Simt,
    /// `prepare events`.
    Prepare,
    /// The same in the place of an older one.
    Overwrite,
    /// That on a file system that cannot exchange names.
    OverwriteInTurn,
    /// What a model knows.
    Basis,
    /// A merged model.
    Merged,
    /// An adapter.
    Peft,
    /// Measurements of a run.
    Evaluate,
    /// An answer of a run.
    Rank,
}

impl Subject {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Train,
        Self::Steps,
        Self::Lora,
        Self::Full,
        Self::Resume,
        Self::Simt,
        Self::Prepare,
        Self::Overwrite,
        Self::OverwriteInTurn,
        Self::Basis,
        Self::Merged,
        Self::Peft,
        Self::Evaluate,
        Self::Rank,
    ];

    /// Its name in tables.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// Whether it replaces a directory.
    pub fn overwrites(self) -> bool {
        matches!(self, Self::Overwrite | Self::OverwriteInTurn)
    }

    /// Whether it is a run, which checkpoints.
    pub fn is_run(self) -> bool {
        matches!(self, Self::Train | Self::Steps | Self::Lora | Self::Full | Self::Resume | Self::Simt)
    }
}

/// Where everything is.
pub struct World {
    /// The engine.
    pub engine: PathBuf,
    /// Models, data, runs: read only.
    pub given: PathBuf,
    /// The directory that commands write in; empty or prepared before each case.
    pub disk: PathBuf,
}

const SHORT: &[&str] = &[
    "--threads",
    "1",
    "--set",
    "gems.rank=4",
    "--set",
    "gems.refresh_every=3",
    "--set",
    "gems.refresh_window=2",
    "--set",
    "train.batch=3",
    "--set",
    "train.probe_batches=1",
    "--set",
    "train.warmup_steps=2",
    "--set",
    "checkpoint.every=2",
    "--set",
    "data.item_token=<new_{}>",
    "--set",
    "null_space.tokens=200",
    "--set",
    "rehearsal.texts=4",
];
const BARE: &[&str] = &[
    "--set",
    "train.evaluate_before=false",
    "--set",
    "train.evaluate_after=false",
    "--set",
    "train.export=false",
    "--set",
    "train.validate_every=0",
];
const FREE: &[&str] = &["--set", "null_space.side=none", "--set", "null_space.item_rows=0.0"];

impl World {
    /// Makes models and data below `work`.
    ///
    /// # Errors
    /// The file system.
    pub fn make(engine: &Path, work: &Path) -> Result<Self> {
        let (given, disk) = (work.join("given"), work.join("disk"));
        fs::create_dir_all(&given)?;
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/models");
        for model in ["llama_tied", "t5_v11"] {
            copy(&golden.join(model), &given.join(model))?;
        }
        data(&given.join("data"))?;
        Ok(Self { engine: engine.canonicalize()?, given, disk })
    }

    fn path(&self, name: &str) -> String {
        self.given.join(name).display().to_string()
    }

    /// Where a command writes its result.
    pub fn out(&self) -> PathBuf {
        self.disk.join("out")
    }

    /// Runs that others read or go on with.
    ///
    /// # Errors
    /// The engine.
    pub fn train_what_is_read(&self) -> Result<()> {
        for (name, steps) in [("run", "4"), ("halfway", "3")] {
            let mut command = self.training("llama_tied", &[], &self.path(name));
            command.args(["--set", "train.steps=6"]);
            if name == "run" {
                command.args(["--steps", steps]);
                finished(&mut command)?;
                continue;
            }
            // `stop` after the second step: the third is the last.
            let mut child =
                command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn()?;
            let log = self.given.join(name).join("metrics.jsonl");
            while fs::read_to_string(&log).unwrap_or_default().lines().count() < 2
                && child.try_wait()?.is_none()
            {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            fs::write(self.given.join(name).join("stop"), "")?;
            child.wait()?;
        }
        Ok(())
    }

    fn training(&self, model: &str, more: &[&[&str]], out: &str) -> Command {
        let mut command = Command::new(&self.engine);
        command.args([
            "train",
            "--resume",
            "auto",
            "--model",
            &self.path(model),
            "--data",
            &self.path("data"),
        ]);
        command.args(["--out", out]).args(SHORT);
        for more in more {
            command.args(*more);
        }
        command
    }

    /// The command of a subject. Given again after a fault, it must come to the same end.
    pub fn command(&self, subject: Subject) -> Command {
        let out = self.out().display().to_string();
        let reading = |command: &str, more: &[&str]| {
            let mut c = Command::new(&self.engine);
            c.args([command, "--run", &self.path("run")]).args(more);
            c
        };
        let mut command = match subject {
            Subject::Train => self.training(
                "llama_tied",
                &[&["--steps", "6", "--set", "train.validate_every=2", "--set", "checkpoint.keep=1"]],
                &out,
            ),
            Subject::Steps => self.training(
                "llama_tied",
                &[BARE, FREE, &["--steps", "6", "--set", "checkpoint.keep=1"]],
                &out,
            ),
            Subject::Lora => {
                self.training("llama_tied", &[BARE, FREE, &["--steps", "5", "--method", "lora"]], &out)
            }
            Subject::Full => {
                self.training("t5_v11", &[BARE, FREE, &["--steps", "4", "--method", "full"]], &out)
            }
            Subject::Resume => {
                let mut c = Command::new(&self.engine);
                c.args(["train", "--resume", "--threads", "1", "--out", &out]);
                c
            }
            Subject::Simt => self.training(
                "llama_tied",
                &[
                    BARE,
                    FREE,
                    &[
                        "--device",
                        "simt",
                        "--steps",
                        "2",
                        "--set",
                        "train.batch=1",
                        "--set",
                        "checkpoint.every=1",
                        "--method",
                        "lora",
                    ],
                ],
                &out,
            ),
            Subject::Prepare | Subject::Overwrite | Subject::OverwriteInTurn => {
                let mut c = Command::new(&self.engine);
                c.args([
                    "prepare",
                    "events",
                    &self.path("data/log.csv"),
                    "--items",
                    &self.path("data/catalogue.csv"),
                ]);
                c.args(["--general", &self.path("data/general.txt"), "--out", &out]);
                c
            }
            Subject::Basis => {
                let mut c = Command::new(&self.engine);
                c.args(["basis", "--model", &self.path("llama_tied"), "--data", &self.path("data")]);
                c.args([
                    "--set",
                    "null_space.tokens=200",
                    "--set",
                    "gems.rank=4",
                    "--set",
                    "data.item_token=<new_{}>",
                ]);
                c.args(["--threads", "1", "--out", &out]);
                c
            }
            Subject::Merged => reading("export", &["--format", "merged", "--out", &out]),
            Subject::Peft => reading("export", &["--format", "peft", "--out", &out]),
            Subject::Evaluate => reading("evaluate", &["--trec", &out, "--threads", "1"]),
            Subject::Rank => reading("rank", &["--history", "i1,i2", "--query", "red desk"]),
        };
        if subject.overwrites() {
            command.arg("--overwrite");
        }
        command.env_remove("RUST_BACKTRACE");
        command
    }

    /// Puts in place what a subject begins with.
    ///
    /// # Errors
    /// The file system, the engine.
    pub fn set_up(&self, subject: Subject) -> Result<()> {
        let _ = fs::remove_dir_all(self.disk.with_extension("after"));
        match fs::remove_dir_all(&self.disk) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => fs::create_dir(&self.disk)?,
        }
        match subject {
            Subject::Resume => copy(&self.given.join("halfway"), &self.out()),
            _ if subject.overwrites() => finished(self.command(Subject::Prepare).args(["--seed", "5"])),
            _ => Ok(()),
        }
    }

    /// Directories that a replacement in turn left on their way, whole or not.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn on_their_way(&self) -> Result<Vec<BTreeMap<PathBuf, Vec<u8>>>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.disk)? {
            let path = entry?.path();
            for path in [path.join("old"), path] {
                let mut found = BTreeMap::new();
                if path.is_dir() && path != self.out() {
                    collect(&path, &path, &mut found)?;
                    all.push(found);
                }
            }
        }
        Ok(all)
    }

    /// What a finished command has left, but for what is of its time and place.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn result(&self, subject: Subject) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let (out, mut found) = (self.out(), BTreeMap::new());
        match fs::metadata(&out) {
            Ok(what) if what.is_dir() => collect(&out, &out, &mut found)?,
            Ok(_) => drop(found.insert(PathBuf::from("out"), fs::read(&out)?)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        if !subject.is_run() {
            // A directory that others use as well: what a killed process left in it is not for the next one to remove.
            found.retain(|path, _| !path.to_string_lossy().starts_with(".writing-"));
            return Ok(found);
        }
        let told = ["log.txt", "history.jsonl", "report.html", "about.json", ".lock", "tensorboard"];
        found.retain(|path, _| !told.iter().any(|name| path.starts_with(name)));
        for (name, bytes) in &mut found {
            match name.to_str() {
                Some("metrics.jsonl") => *bytes = without_times(bytes),
                Some("result.json") => {
                    // A torn one stays as it is: it is not the same, and that is told.
                    let Ok(mut value) = serde_json::from_slice::<Value>(bytes) else { continue };
                    value.as_object_mut().and_then(|result| result.remove("phases"));
                    value["training"] = json!({"update": value["training"]["mean_update_norm"]});
                    *bytes = value.to_string().into_bytes();
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

/// Runs a command that must succeed.
fn finished(command: &mut Command) -> Result<()> {
    let done = command.output()?;
    match done.status.success() {
        true => Ok(()),
        false => Err(std::io::Error::other(String::from_utf8_lossy(&done.stderr).into_owned())),
    }
}

/// The steps, without what depends on the clock or on what was in memory before.
fn without_times(log: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(log);
    let lines = text.lines().map(|line| {
        let mut value: Value = serde_json::from_str(line).unwrap_or(Value::Null);
        if let Some(line) = value.as_object_mut() {
            line.retain(|key, _| !["second", "_ms", "memory"].iter().any(|of| key.contains(of)));
        }
        format!("{value}\n")
    });
    lines.collect::<String>().into_bytes()
}

fn collect(root: &Path, at: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    for entry in fs::read_dir(at)? {
        let path = entry?.path();
        let inside = path.strip_prefix(root).unwrap_or(&path).to_path_buf();
        if path.is_symlink() {
            found.insert(inside, fs::read_link(&path)?.display().to_string().into_bytes());
        } else if path.is_dir() {
            collect(root, &path, found)?;
        } else {
            found.insert(inside, fs::read(&path)?);
        }
    }
    Ok(())
}

/// Copies a directory.
///
/// # Errors
/// The file system.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let new = to.join(path.file_name().unwrap_or_default());
        if path.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&path)?, &new)?;
        } else if path.is_dir() {
            copy(&path, &new)?;
        } else {
            fs::copy(&path, &new)?;
        }
    }
    Ok(())
}

/// A data directory of 12 items and two tasks, general text, and a log that one could be prepared from.
fn data(at: &Path) -> Result<()> {
    fs::create_dir_all(at)?;
    let words = ["red", "blue", "green", "oak"];
    let lines = |rows: Vec<Value>| rows.iter().map(|row| format!("{row}\n")).collect::<String>();
    let title = |i: usize| format!("{} desk {i}", words[i % 4]);
    fs::write(
        at.join("items.jsonl"),
        lines((0..12).map(|i| json!({"item": format!("i{i}"), "text": title(i)})).collect()),
    )?;
    for (name, rows, shift) in [("train", 40, 0), ("valid", 6, 1), ("test", 6, 2)] {
        let row = |k: usize| {
            let (a, b, c) = ((k * 5 + shift) % 12, (k * 7 + 1) % 12, (k * 3 + 2 * shift) % 12);
            let mut row = json!({"task": "rec", "history": [format!("i{a}"), format!("i{b}")], "target": [format!("i{c}")]});
            if k.is_multiple_of(3) {
                row["task"] = json!("search");
                row["query"] = json!(format!("{} desk", words[c % 4]));
            }
            row
        };
        fs::write(at.join(format!("{name}.jsonl")), lines((0..rows).map(row).collect()))?;
    }
    let general = |i: usize| format!("the {} desk number {i} stands by a green kettle\n", words[i % 4]);
    fs::write(at.join("general.txt"), (0..30).map(general).collect::<String>())?;
    let catalogue: String = (0..12).map(|i| format!("i{i},{}\n", title(i))).collect();
    fs::write(at.join("catalogue.csv"), format!("item,text\n{catalogue}"))?;
    let event = |k: usize| {
        format!(
            "u{},i{},{},{}\n",
            k % 9,
            k * 7 % 12,
            1000 + k,
            if k.is_multiple_of(3) { "red desk" } else { "" }
        )
    };
    fs::write(
        at.join("log.csv"),
        format!("user,item,timestamp,query\n{}", (0..90).map(event).collect::<String>()),
    )
}
