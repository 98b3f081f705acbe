//! A run from where it stands to its end: steps, the best checkpoint, measurements, export, report.

use crate::cli::card;
use crate::cli::console::Console;
use crate::cli::demo::{self, Source};
use crate::cli::measure::{example, measure, probe};
use crate::cli::phases::Phases;
use crate::cli::session::Session;
use crate::cli::{SAVE_ASKED, catch_interrupts, page, plan, ranks, summary};
use crate::error::{Error, Kind, Result};
use crate::eval::{EvaluateSettings, Reference};
use crate::export::write_merged;
use crate::files::{ASIDE, directory_aside, put_into_place, write_atomically};
use crate::gems::{Knowledge, Optimizer, Side};
use crate::model::{Model, StoredType};
use crate::report::{Journal, read_overview};
use crate::run::{End, Run, RunDirectory};
use crate::train::{
    Averaging, Batches, Ending, Listener, Outcome, Rehearsal, Silent, Standing, Trainer, checkpoint,
    validation,
};
use serde_json::{Map, Value, json};
use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

/// Everything that a run needs to go on.
pub(super) struct Course {
    pub session: Session,
    pub kept: Run,
    pub directory: RunDirectory,
    pub journal: Journal,
    pub knowledge: Option<Knowledge>,
    pub rehearsal: Option<Rehearsal>,
    pub reference: Option<Reference>,
    /// What the base model could do.
    pub before: Option<Value>,
    pub source: Source,
    pub phases: Phases,
    pub quiet: bool,
}

/// Tokens of general text that a validation reads.
const SAMPLE: usize = 4096;

/// Keeps what was measured before training.
pub(super) fn keep_before(run: &Path, value: &Value) -> Result<()> {
    write_atomically(&run.join("before.json"), value.to_string().as_bytes())
}

impl Course {
    /// Goes on to the end.
    pub fn go(mut self, tuner: Optimizer, at: Standing) -> Result<()> {
        let tuned = self.tune(tuner, at).map_err(|error| plan::explain(error, &self.session));
        let outcome = tuned?;
        self.journal.keep(match outcome.ending {
            Ending::Finished => "all steps are done",
            Ending::Early => "stopped early: validation did not improve any more",
            Ending::Interrupted => "interrupted",
        });
        let end = End { ending: outcome.ending, step: outcome.step };
        if outcome.ending == Ending::Interrupted {
            ranks::world().by_first(|| end.note(&self.kept.path))?;
            let what = format!("stopped after step {}; everything is saved", outcome.step);
            return Err(Error::new(Kind::Interrupted, what)
                .remedy(format!("go on with --resume --out {}", self.directory.path.display())));
        }
        self.use_best(&outcome)?;
        let after = match self.session.config.train.evaluate_after {
            true => {
                let measure = || measure(&self.session, self.reference.as_ref(), self.quiet);
                self.phases.time("measuring after", measure)?
            }
            false => Value::Object(Map::new()),
        };
        if !ranks::world().is_first() {
            return Ok(());
        }
        if self.session.config.train.export {
            let start = Instant::now();
            self.export()?;
            self.phases.add("export", start.elapsed());
        }
        let run = &self.directory.path;
        let overview = read_overview(&run.join("metrics.jsonl"))?;
        let result = json!({
            "run": run.display().to_string(), "before": self.before, "after": after,
            "training": overview.training(), "phases": self.phases.json(), "example": example(&self.session, run),
        });
        write_atomically(&run.join("result.json"), result.to_string().as_bytes())?;
        page::write(run, &overview, Some(&result))?;
        end.note(&self.kept.path)?;
        summary::print(&result, self.quiet, legend(&self.source))
    }

    fn tune(&mut self, mut tuner: Optimizer, at: Standing) -> Result<Outcome> {
        let interrupted = catch_interrupts()?;
        let run = &self.directory.path;
        let start = Instant::now();
        let adapted = self.session.adapted()?;
        let device = self.session.model.backend.info().name.clone();
        let spectra =
            self.knowledge.as_ref().map(|k| self.session.spectra(k)).transpose()?.unwrap_or_default();
        ranks::world().by_first(|| page::keep_about(run, &device, &adapted, &spectra))?;
        drop(adapted);
        let Session { config, data, vocabulary, prompts, model, prompt_side, .. } = &mut self.session;
        let encoder = crate::data::Encoder::new(vocabulary, prompts, &data.tasks, *prompt_side, &config.data);
        let (averaging, t) = (Averaging::from(config.gems.side), &config.train);
        let (world, shards) = (ranks::world(), t.shards.max(1));
        let batches = Batches::new(&encoder, &data.train, &data.tasks, t, averaging, config.seed)?;
        let batches = batches.in_leaves(shards, world.leaves(shards));
        let console = || Console::open(run, &self.journal, &data.tasks, (at.step, t.steps), self.quiet);
        let mut console = world.by_first(console)?;
        let mut silent = Silent;
        let listener: &mut dyn Listener = match &mut console {
            Some(console) => console,
            None => &mut silent,
        };
        let evaluate = EvaluateSettings { records: t.validate_records, ..config.evaluate.clone() };
        let (reference, spent) = (self.reference.as_ref(), Cell::new(Duration::ZERO));
        // Until the first step the model is the base model.
        let first = Cell::new(at.step == 0);
        let mut validate = |model: &Model| {
            let start = Instant::now();
            let mut found = validation::measure((model, world), &encoder, data, &evaluate)?;
            let general = |r: &Reference| match first.take() {
                true => r.base_over(world, model, SAMPLE).map(|(general, _)| general),
                false => r.sample_over(world, model, SAMPLE),
            };
            if let Some(general) = reference.map(general).transpose()? {
                let of = [("kl", general.kl), ("perplexity", general.perplexity)];
                found.extend(of.map(|(name, value)| (format!("general.{name}"), value)));
            }
            spent.set(spent.get() + start.elapsed());
            Ok(found)
        };
        if at.step == 0 && t.validate_every > 0 && t.steps > 0 {
            listener.validated(0, &validate(model)?, false)?;
        }
        let mut trainer = Trainer {
            model,
            tuner: &mut tuner,
            batches: &batches,
            rehearsal: self.rehearsal.as_ref(),
            tasks: &data.tasks,
            settings: t,
            checkpoints: &config.checkpoint,
            run,
            world,
            check_every: config.distributed.check_every,
            lr_rows: config.optimizer.lr_rows.unwrap_or(t.lr),
            warmup_from_zero: config.gems.side == Side::Published,
            norms: self.kept.norms.as_ref().map(|norms| norms.update_norms.as_slice()),
            interrupted,
            save_asked: &SAVE_ASKED,
        };
        let outcome = trainer.run(at, listener, &mut validate);
        let ended = outcome.as_ref().is_ok_and(|outcome| outcome.ending != Ending::Interrupted);
        let told = console.as_mut().map_or(Ok(()), |console| console.finish(ended));
        let (whole, outcome) = (start.elapsed(), outcome?);
        let parts = [
            ("trying the largest step", outcome.spent.largest),
            ("first bases", outcome.spent.bases),
            ("validating", spent.get()),
            ("saving checkpoints", outcome.spent.saving),
        ];
        self.phases.add("training", whole.saturating_sub(parts.iter().map(|(_, spent)| *spent).sum()));
        parts.into_iter().for_each(|(phase, spent)| self.phases.add(phase, spent));
        told.map(|()| outcome)
    }

    /// The weights of the best validation, where they are not the last ones.
    fn use_best(&mut self, outcome: &Outcome) -> Result<()> {
        let Some((step, _)) = outcome.best.filter(|(step, _)| *step != outcome.step) else { return Ok(()) };
        let found = checkpoint::load(&checkpoint::directory(&self.directory.join("checkpoints"), step))?;
        let session = &mut self.session;
        let mut tuner = session.tuner(self.knowledge.as_ref())?;
        found.restore(&mut session.model, &mut tuner, &session.data.tasks)?;
        self.journal
            .say(&format!("the best step by {} was {step}: using it", session.config.train.best_metric));
        Ok(())
    }

    /// Writes `model/`; an older one stays until the new one is whole.
    fn export(&self) -> Result<()> {
        let (session, dir) = (&self.session, self.directory.join("model"));
        let failed = |e| Error::io("write", &dir, e);
        let aside = directory_aside(&self.directory.path, ASIDE).map_err(failed)?;
        let beside = |dir: &Path| card::write(session, &self.directory.path, true, dir);
        let probe = probe(session)?;
        let worst =
            write_merged(&session.model, &session.base, aside.path(), StoredType::F32, &beside, &probe)?;
        put_into_place(aside, &dir, true).map_err(failed)?;
        self.journal
            .say(&format!("wrote {} (largest logit difference on reading back: {worst:.1e})", dir.display()));
        Ok(())
    }
}

/// What the rows of the result are, of a run of the demo.
pub(super) fn legend(source: &Source) -> &'static str {
    if matches!(source, Source::Demo(_)) { demo::LEGEND } else { "" }
}
