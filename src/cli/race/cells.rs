//! Running cells: each a `train` of this program in a process of its own, in `cells/NAME/` until it has a result.

use super::RaceArgs;
use super::plan::Plan;
use crate::backend::cuda::driver_present;
use crate::cli::catch_interrupts;
use crate::config::{Config, Device};
use crate::error::{Error, Kind, Result};
use crate::files::write_atomically;
use crate::gems::NullSide;
use crate::race::{Cell, Kept, Made, Outcome};
use crate::report::{Journal, Progress};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How often a running cell is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How often progress is shown.
const SHOW: Duration = Duration::from_millis(500);

/// Runs cells, some at a time.
pub(super) struct Runner<'a> {
    program: PathBuf,
    jobs: usize,
    /// Threads of a cell, where they are given or shared out.
    threads: Option<usize>,
    basis: Option<PathBuf>,
    given: bool,
    /// Where cells keep what the base model makes of general text, which is the same for all.
    states: PathBuf,
    journal: &'a Journal,
    quiet: bool,
    interrupted: &'static AtomicBool,
}

/// Why there is no result.
enum Without {
    Interrupted,
    Failed(String),
}

impl<'a> Runner<'a> {
    /// For a command line.
    ///
    /// # Errors
    /// Several cells at a time where there is one GPU.
    pub fn new(args: &RaceArgs, plan: &Plan, journal: &'a Journal) -> Result<Self> {
        let gpu = match plan.config.device {
            Device::Cuda(_) => true,
            Device::Auto => driver_present(),
            Device::Cpu | Device::Simt => false,
        };
        if args.jobs > 1 && gpu {
            return Err(Error::usage("cells on one GPU run one after the other")
                .at("--jobs")
                .remedy("leave it out, or give --device cpu"));
        }
        let all = args.threads().or_else(|| std::thread::available_parallelism().ok().map(usize::from));
        let shared = all.map(|all| (all / args.jobs).max(1));
        Ok(Self {
            program: std::env::current_exe().map_err(|e| Error::io("find this program", "", e))?,
            jobs: args.jobs,
            threads: if args.jobs > 1 { shared } else { args.threads() },
            basis: args.basis.clone(),
            given: args.basis.is_some(),
            states: plan.out.join("base-states"),
            journal,
            quiet: args.output.json,
            interrupted: catch_interrupts()?,
        })
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(name).arg("--json").stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(threads) = self.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        // Of a group of its own, so that Ctrl-C reaches it once: through us.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
    }

    /// The one basis of the race, learned or found; nothing where no cell needs one.
    pub fn learn_basis(&mut self, plan: &Plan) -> Result<()> {
        if self.given || !plan.needs_basis() {
            return Ok(());
        }
        let (path, beside) = (plan.out.join("basis.safetensors"), plan.out.join("basis.json"));
        let config = basis_settings(plan);
        let made = serde_json::to_value(plan.made(&config)).unwrap_or_default();
        let known = fs::read(&beside).ok().and_then(|text| serde_json::from_slice(&text).ok());
        self.basis = Some(path.clone());
        if path.is_file() && known == Some(made.clone()) {
            return Ok(());
        }
        self.journal.say("learning what the base model knows, once for all cells");
        let (settings, said) = (plan.out.join("basis.toml"), plan.out.join("basis.said"));
        write_atomically(&settings, config.to_toml().as_bytes())?;
        let mut command = self.command("basis");
        command.arg("--config").arg(&settings).arg("--out").arg(&path);
        command.arg("--model").arg(&config.model.path).arg("--data").arg(&config.data.path);
        let status = self.watch(command, &said)?;
        match (status.success(), self.interrupted.load(Ordering::SeqCst)) {
            (true, _) => write_atomically(&beside, made.to_string().as_bytes()),
            (_, true) => Err(Error::new(Kind::Interrupted, "stopped while the knowledge basis was learned")
                .remedy("the same command goes on")),
            _ => Err(Error::model(message(&said, status)).at("the knowledge basis")),
        }
    }

    /// Gives every method the steps that it does in `minutes`, measured once, over a few steps each.
    pub fn pace(&mut self, plan: &mut Plan, minutes: f64) -> Result<()> {
        const STEPS: u64 = 20;
        let path = plan.out.join("pace.json");
        let stored = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let mut known: BTreeMap<String, f64> = stored.unwrap_or_default();
        for (number, method) in plan.grid.methods.clone().iter().enumerate() {
            if !known.contains_key(&method.name) {
                self.journal.say(&format!("measuring the pace of {}", method.name));
                let cell = Cell {
                    method: method.name.clone(),
                    alone: None,
                    lr: plan.grid.rates[number][0],
                    seed: plan.grid.seeds[0],
                    steps: STEPS,
                };
                let mut config = plan.common.settings(&plan.methods, &cell)?;
                (config.train.validate_every, config.train.evaluate_after) = (0, false);
                let run = plan.out.join("cells").join(format!("pace.{}", method.name));
                let _ = fs::remove_dir_all(&run);
                self.train(&run, &config).map_err(|without| match without {
                    Without::Interrupted => {
                        Error::new(Kind::Interrupted, "stopped while the pace was measured")
                    }
                    Without::Failed(why) => Error::data(why).at(format!("the pace of {}", method.name)),
                })?;
                let times = crate::report::read(&run.join("metrics.jsonl"))?;
                let times: Vec<f64> = times.iter().filter_map(|l| l.get("step_ms")?.as_f64()).collect();
                let mean = times.iter().sum::<f64>() / times.len().max(1) as f64;
                known.insert(method.name.clone(), mean / 1e3);
                let _ = fs::remove_dir_all(&run);
                write_atomically(&path, serde_json::to_string(&known).unwrap_or_default().as_bytes())?;
            }
            plan.grid.steps[number] = ((minutes * 60.0 / known[&method.name]) as u64).max(1);
        }
        let steps = plan.grid.methods.iter().zip(&plan.grid.steps);
        let each: Vec<String> = steps.map(|(m, n)| format!("{} {n}", m.name)).collect();
        // In the place of what was said while steps were not known.
        plan.notes.pop();
        plan.notes.push(format!(
            "matched in time, not in steps: {minutes} minutes are, in steps, {}",
            each.join(", ")
        ));
        plan.lay_out()
    }

    /// Runs all cells that have no result yet, and says which got none and why.
    pub fn cells(&self, plan: &Plan, kept: &mut BTreeMap<usize, Kept>) -> Result<Vec<(Cell, String)>> {
        let to_do: VecDeque<usize> = (0..plan.cells.len()).filter(|p| !kept.contains_key(p)).collect();
        let all: u64 = plan.cells.iter().map(|(cell, _)| cell.steps).sum();
        let done: u64 = kept.keys().map(|p| plan.cells[*p].0.steps).sum();
        if !to_do.is_empty() {
            self.journal.say(&format!("{} of {} cells to run", to_do.len(), plan.cells.len()));
        }
        fs::create_dir_all(plan.out.join("cells")).map_err(|e| Error::io("create", &plan.out, e))?;
        let progress = Progress::new("race", all, self.quiet).starting_at(done);
        let (queue, running) = (Mutex::new(to_do), Mutex::new(Vec::new()));
        let (sender, receiver) = channel();
        std::thread::scope(|scope| {
            for _ in 0..self.jobs {
                let (sender, queue, running) = (sender.clone(), &queue, &running);
                scope.spawn(move || self.work(plan, queue, running, &sender));
            }
            drop(sender);
            self.collect(plan, kept, progress, &running, &receiver)
        })
    }

    /// One cell after the other until none is left.
    fn work(
        &self,
        plan: &Plan,
        queue: &Mutex<VecDeque<usize>>,
        running: &Mutex<Vec<usize>>,
        done: &Sender<Done>,
    ) {
        let lock = |all: &Mutex<Vec<usize>>, change: &dyn Fn(&mut Vec<usize>)| {
            change(&mut all.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        };
        while !self.interrupted.load(Ordering::SeqCst) {
            let next = queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop_front();
            let Some(place) = next else { return };
            lock(running, &|all| all.push(place));
            let (start, (cell, config)) = (Instant::now(), &plan.cells[place]);
            let result = self.cell(plan, cell, config);
            lock(running, &|all| all.retain(|p| *p != place));
            // The base model comes first: what it cannot do, no cell can.
            if cell.method.is_empty() && matches!(result, Err(Without::Failed(_))) {
                queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
            }
            if done.send((place, result, start.elapsed())).is_err() {
                return;
            }
        }
    }

    fn collect(
        &self,
        plan: &Plan,
        kept: &mut BTreeMap<usize, Kept>,
        mut progress: Progress,
        running: &Mutex<Vec<usize>>,
        receiver: &Receiver<Done>,
    ) -> Result<Vec<(Cell, String)>> {
        let mut missing = Vec::new();
        loop {
            match receiver.recv_timeout(SHOW) {
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
                Ok((_, Err(Without::Interrupted), _)) => {}
                Ok((place, result, time)) => {
                    let cell = &plan.cells[place].0;
                    let line = match &result {
                        Ok(kept) => summary(&kept.outcome, plan, time),
                        Err(Without::Failed(why)) => format!("failed: {}", why.lines().next().unwrap_or("")),
                        Err(Without::Interrupted) => String::new(),
                    };
                    let line = format!("{}: {line}", cell.name(&plan.common.tasks));
                    progress.note(&line);
                    self.journal.keep(&line);
                    match result {
                        Ok(found) => drop(kept.insert(place, found)),
                        Err(Without::Failed(why)) if cell.method.is_empty() => {
                            return Err(Error::data(why).at("the base model"));
                        }
                        Err(Without::Failed(why)) => missing.push((cell.clone(), why)),
                        Err(Without::Interrupted) => {}
                    }
                }
            }
            let under_way = running.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
            let steps: u64 = kept.keys().map(|p| plan.cells[*p].0.steps).sum();
            let within: u64 = under_way.iter().map(|p| steps_of(&run_of(plan, &plan.cells[*p].0))).sum();
            let (n, of) = (kept.len(), plan.cells.len());
            progress.tick(steps + within, || format!("{n} of {of} cells done"));
        }
        progress.finish();
        // They are as soon computed again.
        let _ = fs::remove_dir_all(&self.states);
        Ok(missing)
    }

    /// A cell from where it stands to its result.
    fn cell(&self, plan: &Plan, cell: &Cell, config: &Config) -> std::result::Result<Kept, Without> {
        let failed = |e: Error| Without::Failed(e.to_string());
        let (run, made): (PathBuf, Made) = (run_of(plan, cell), plan.made(config));
        self.wait_for_another(&run)?;
        let begun =
            fs::read(run.join("made.json")).ok().and_then(|text| serde_json::from_slice::<Made>(&text).ok());
        let saved = fs::read_dir(run.join("checkpoints")).is_ok_and(|mut all| all.next().is_some());
        let goes_on = saved && begun.as_ref() == Some(&made);
        if !goes_on {
            let _ = fs::remove_dir_all(&run);
            fs::create_dir_all(&run).map_err(|e| failed(Error::io("create", &run, e)))?;
            let text = serde_json::to_vec(&made).unwrap_or_default();
            write_atomically(&run.join("made.json"), &text).map_err(failed)?;
        }
        let name = cell.name(&plan.common.tasks);
        self.journal.keep(&format!("{} {name}", if goes_on { "going on with" } else { "starting" }));
        self.train(&run, config)?;
        let outcome = Outcome::of_run(&run, &plan.metric).map_err(failed)?;
        let kept = Kept { cell: cell.clone(), made, outcome };
        kept.write(&plan.file(cell)).map_err(failed)?;
        let _ = fs::remove_dir_all(&run);
        Ok(kept)
    }

    /// `train` in the directory `run`, new or resumed, to its end.
    fn train(&self, run: &Path, config: &Config) -> std::result::Result<(), Without> {
        let failed = |e: Error| Without::Failed(e.to_string());
        let said = run.join("said.txt");
        let mut command = self.command("train");
        command.arg("--out").arg(run).arg("--base-states").arg(&self.states);
        if run.join("checkpoints").is_dir() {
            command.arg("--resume");
        } else {
            let settings = run.join("settings.toml");
            fs::create_dir_all(run).map_err(|e| failed(Error::io("create", run, e)))?;
            write_atomically(&settings, config.to_toml().as_bytes()).map_err(failed)?;
            command.arg("--config").arg(settings);
            if let Some(basis) = &self.basis {
                command.arg("--basis").arg(basis);
            }
        }
        let status = self.watch(command, &said).map_err(failed)?;
        match (status.success(), self.interrupted.load(Ordering::SeqCst)) {
            (true, _) => Ok(()),
            (_, true) => Err(Without::Interrupted),
            _ => {
                // What it said stays; checkpoints of what does not work are of no use.
                let why = message(&said, status);
                let _ = fs::remove_dir_all(run.join("checkpoints"));
                Err(Without::Failed(why))
            }
        }
    }

    /// Waits for a process that an earlier race, killed since, left in `run`.
    fn wait_for_another(&self, run: &Path) -> std::result::Result<(), Without> {
        let mut told = false;
        while let Ok(lock) = File::open(run.join(".lock")) {
            match lock.try_lock() {
                Err(fs::TryLockError::WouldBlock) if self.interrupted.load(Ordering::SeqCst) => {
                    return Err(Without::Interrupted);
                }
                Err(fs::TryLockError::WouldBlock) => {}
                _ => break,
            }
            if !told {
                self.journal.say(&format!("waiting for an earlier process in {}", run.display()));
                told = true;
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Runs a command to its end, its standard error into `said`. When the user stops the race, it is asked to stop.
    fn watch(&self, mut command: Command, said: &Path) -> Result<ExitStatus> {
        let errors = File::create(said).map_err(|e| Error::io("write", said, e))?;
        let mut child = command.stderr(errors).spawn().map_err(|e| Error::io("start", &self.program, e))?;
        let mut asked = false;
        loop {
            let ended = child.try_wait().map_err(|e| Error::io("wait for", &self.program, e))?;
            if let Some(status) = ended {
                return Ok(status);
            }
            if self.interrupted.load(Ordering::SeqCst) && !asked {
                if let Some(process) = rustix::process::Pid::from_raw(child.id() as i32) {
                    let _ = rustix::process::kill_process(process, rustix::process::Signal::INT);
                }
                asked = true;
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// Place, result and time of a cell that ended.
type Done = (usize, std::result::Result<Kept, Without>, Duration);

/// Where a cell runs.
fn run_of(plan: &Plan, cell: &Cell) -> PathBuf {
    plan.out.join("cells").join(cell.name(&plan.common.tasks))
}

/// The settings under which the basis is learned: those that all cells share, and the moments of outputs where any
/// method protects them.
fn basis_settings(plan: &Plan) -> Config {
    let mut config = plan.cells[0].1.clone();
    if plan.cells.iter().any(|(_, c)| c.null_space.side == NullSide::Output) {
        config.null_space.side = NullSide::Output;
    }
    config
}

/// What a process that failed said: its error, or how it ended.
fn message(said: &Path, status: ExitStatus) -> String {
    let text = fs::read_to_string(said).unwrap_or_default();
    match text.find("error: ") {
        Some(at) => text[at + "error: ".len()..].trim().to_string(),
        None => format!("ended by {status} without a message"),
    }
}

/// The last step that a run has logged.
fn steps_of(run: &Path) -> u64 {
    let last = || -> Option<u64> {
        let mut file = File::open(run.join("metrics.jsonl")).ok()?;
        let size = file.seek(SeekFrom::End(0)).ok()?;
        file.seek(SeekFrom::Start(size.saturating_sub(16_384))).ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        let number = text.rsplit("{\"step\":").next()?;
        number.split(',').next()?.parse().ok()
    };
    last().unwrap_or(0)
}

/// One line of a finished cell.
fn summary(outcome: &Outcome, plan: &Plan, time: Duration) -> String {
    let mean = |task: &String| {
        let values = outcome.requests.get(task)?;
        Some(format!("{task} {:.3}", values.iter().sum::<f64>() / values.len().max(1) as f64))
    };
    let tasks: Vec<String> = plan.judged.iter().filter_map(mean).collect();
    format!("{}, KL {:.3} ({:.0} s)", tasks.join(", "), outcome.kl(), time.as_secs_f64())
}
