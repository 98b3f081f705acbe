//! How ranks part: in order, with an error that all of them hear, or because one is silent.

use super::{End, PRINTING, Said, World};
use crate::distributed::communicator::Failure;
use crate::distributed::told::{TEXT, Told};
use crate::distributed::word::{Operation, Word};
use crate::error::{Error, Kind, Result};

impl World {
    /// Ends in order. To be called when everything is done.
    ///
    /// # Errors
    /// Ranks that are not done.
    pub fn leave(&self) -> Result<()> {
        let (_, limit) = self.state().limits;
        self.announce(Operation::Leave, Said::within(limit))?;
        self.link.iter().for_each(|link| link.leave());
        Ok(())
    }

    /// Ends with an error: all ranks hear of it, unless they have already, and have the time to print it with `print`.
    /// Nobody waits for a rank that does not answer.
    pub fn fail(&self, error: &Error, print: impl FnOnce()) {
        let end = self.state().end;
        if let (None, Some(_)) = (end, &self.link) {
            let limit = self.state().limits.0;
            let said = Said { failed: true, ..Said::within(limit) };
            // What goes wrong here is less than what went wrong before.
            if let Ok(words) = self.announce(Operation::Agree, said) {
                self.hear(&words, Some(error));
            }
        }
        print();
        let Some(link) = &self.link else { return };
        let together = self.state().end == Some(End::Told) && link.gather(&[0], PRINTING).is_ok();
        match together {
            true => link.leave(),
            false => {
                // Others find out at about the same time, and have something to print too.
                std::thread::sleep(PRINTING / 2);
                link.abort(error.exit_code());
            }
        }
    }

    /// All ranks exchange their errors, where they have one; the first of them.
    pub(super) fn hear(&self, words: &[Word], own: Option<&Error>) -> Error {
        self.state().end = Some(End::Told);
        let text = own.map_or(Vec::new(), |error| Told::of(error).bytes());
        let mut padded = vec![0; TEXT];
        padded[..text.len()].copy_from_slice(&text);
        let limit = self.state().limits.0;
        let all = match self.link.as_ref().map(|link| link.gather(&padded, limit)) {
            Some(Ok(all)) => all,
            Some(Err(failure)) => return self.broken(Operation::Agree, failure),
            None => padded,
        };
        let failed = words.iter().position(|w| w.failed).unwrap_or(0);
        let told = Told::read(all.chunks_exact(TEXT).nth(failed).unwrap_or_default());
        told.error(&self.call(failed))
    }

    pub(super) fn disagree(&self, words: &[Word], other: usize) -> Error {
        self.state().end = Some(End::Told);
        let describe = |rank: usize| {
            let Word { operation, step, size, .. } = &words[rank];
            let size = if *size == 0 { String::new() } else { format!(" of shape {size:x}") };
            format!("{} came to {}{size} at step {step}", self.call(rank), operation.name())
        };
        Error::new(
            Kind::Distributed,
            format!("ranks do different things: {}, {}", describe(0), describe(other)),
        )
        .remedy("start every rank with the same program, settings, model and data")
    }

    pub(super) fn no_words(&self) -> Error {
        self.state().end = Some(End::Broken);
        Error::new(Kind::Distributed, "what other ranks sent is not of this program")
            .remedy("start every rank with the same program")
    }

    pub(super) fn broken(&self, operation: Operation, failure: Failure) -> Error {
        let step = {
            let mut state = self.state();
            state.end = Some(if matches!(failure, Failure::Late(_)) { End::Late } else { End::Broken });
            state.step
        };
        let place = format!("step {step}, {}", operation.name());
        let (what, remedy) = match failure {
            Failure::Silent { ranks, after } if !ranks.is_empty() => {
                let names: Vec<String> = ranks.iter().map(|rank| self.call(*rank)).collect();
                let answered = self.size - ranks.len();
                (
                    format!(
                        "no word from {} for {:.1} s; {answered} of {} ranks answered",
                        names.join(", "),
                        after.as_secs_f64(),
                        self.size
                    ),
                    "look at that machine and its log; go on from the last checkpoint with --resume. Where a rank is \
                     merely slow, raise distributed.timeout_s",
                )
            }
            Failure::Silent { after, .. } => (
                format!(
                    "all ranks answer, and what they exchange does not arrive for {:.1} s",
                    after.as_secs_f64()
                ),
                "look at the network between the machines; go on from the last checkpoint with --resume",
            ),
            Failure::Late(after) => (
                format!(
                    "not all of {} ranks came within {:.1} s, and {} cannot say who is missing",
                    self.size,
                    after.as_secs_f64(),
                    self.transport()
                ),
                "a rank that is there leaves its word in log.<rank>.txt; look at the machines of the others, and go on \
                 from the last checkpoint with --resume. Where a rank is merely slow, raise distributed.timeout_s",
            ),
            Failure::Library(text) => {
                (format!("{} failed: {text}", self.transport()), "look at what the library says above")
            }
        };
        Error::new(Kind::Distributed, what).at(place).remedy(remedy)
    }
}
