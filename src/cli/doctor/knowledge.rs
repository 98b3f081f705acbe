//! What a knowledge basis of a model keeps, and what is protected of it under the default settings.

use super::{Check, fail, pass, warn};
use crate::backend::cpu::Cpu;
use crate::cli::protection::Protected;
use crate::config::Config;
use crate::error::Result;
use crate::gems::{Knowledge, NullSide, Protection, WHOLE};
use crate::model::{Architecture, Checked, Layout};
use std::path::Path;

/// Two tasks: search and recommendation.
const TASKS: usize = 2;

/// A basis in a file, layer by layer; without one, what a basis of the model would keep. Nothing of a model that cannot be
/// read, which another check says.
pub fn of(model: &Path, basis: Option<&Path>) -> (Option<Check>, Option<Protected>) {
    let Some(basis) = basis else {
        return (Architecture::read(model).ok().map(|a| planned(&Layout::new(&a))), None);
    };
    let Ok(checked) = Checked::open(model) else { return (None, None) };
    match look(&checked, basis) {
        Err(error) => {
            let text = error.to_string();
            let (found, hint) = text.split_once("\n  try: ").unwrap_or((&text, "see docs/knowledge.md"));
            (Some(fail("knowledge", found, hint)), None)
        }
        Ok((knowledge, protected)) => {
            let found = format!(
                "{}: {} tokens of general text, {} of them backward too",
                basis.display(),
                knowledge.tokens,
                knowledge.gradient_tokens
            );
            let check = match protected.warnings(true).as_slice() {
                [] => pass("knowledge", found),
                warnings => warn("knowledge", found, warnings.join("; ")),
            };
            (Some(check), Some(protected))
        }
    }
}

fn look(checked: &Checked, basis: &Path) -> Result<(Knowledge, Protected)> {
    let knowledge = Knowledge::load(basis, &checked.fingerprint()?)?;
    let (mut config, sites) = (Config::default(), Layout::new(&checked.architecture).sites);
    // What a null space of inputs would protect; what pulls back or rehearses protects no direction by itself.
    config.null_space.side = NullSide::Input;
    let rooms = config.tuner().rooms(&sites, TASKS)?;
    let device = (&*Cpu::open(None)?, config.seed);
    let protection = Protection::of(&knowledge, &config.null_space, &sites, &rooms, device)?;
    let protected = Protected::of(&knowledge, &protection, &sites, &rooms);
    drop(protection);
    Ok((knowledge, protected))
}

/// What a basis of a model with these layers would keep.
fn planned(layout: &Layout) -> Check {
    let settings = Config::default().null_space;
    let mut inputs: Vec<(usize, usize)> = layout.sites.iter().map(|s| (s.input_group, s.inputs)).collect();
    inputs.sort_unstable();
    inputs.dedup();
    let widths = inputs.iter().map(|i| i.1).chain(layout.sites.iter().map(|s| s.outputs));
    let widths: Vec<usize> = widths.collect();
    let kept = |n: usize| if n <= WHOLE { n } else { settings.directions };
    let bytes: usize = widths.iter().map(|n| n * kept(*n) * 4).sum();
    let whole = widths.iter().filter(|n| **n <= WHOLE).count();
    pass(
        "knowledge",
        format!(
            "a basis would keep {whole} second moments whole and {} directions of {} wider ones, {:.0} MB; --basis FILE says \
             what one protects",
            settings.directions,
            widths.len() - whole,
            bytes as f64 / 1e6
        ),
    )
}
