//! A sum of which sections leave while the rest of it is still computed.
//!
//! Each section goes as a sum of `sums` does, inwards through its circles as slices and back as finished ones. With every
//! section that leaves those before it go one leg further, so the device does not wait for what it has just sent. Every rank
//! sends the same sections in the same order, whenever it has them.

use super::sums::{PIECE, Summing};
use super::{Costs, Said, World};
use crate::backend::{Backend, DType, DeviceInfo, MatMut, Tensor};
use crate::distributed::communicator::OnWay;
use crate::distributed::tree::Tree;
use crate::distributed::word::Operation;
use crate::error::{Error, Result};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// A sum over all ranks of which parts are still computed.
pub struct RunningSum<'a> {
    summing: Summing<'a>,
    own: Tree,
    whole: Tensor,
    sections: Vec<Section>,
}

/// Columns on their way.
struct Section {
    columns: Range<usize>,
    /// How long the slices are in each circle that they have been cut in.
    widths: Vec<usize>,
    /// Where they are in.
    circle: usize,
    /// Whether they are finished, on the way back.
    is_finished: bool,
    on_way: OnWay,
}

impl World {
    /// Whether the settings want sums to run while a step is computed on such a device; where they say nothing, on GPUs of
    /// several machines.
    pub fn wants_overlap(&self, device: &DeviceInfo) -> bool {
        let wish = self.state().overlap;
        let apart = self.members.iter().any(|member| member.host != self.members[0].host);
        !self.is_alone() && wish.unwrap_or(apart && device.launches_kernels())
    }

    /// Whether that can be done with what is in the memory of `home`. To be asked by all ranks at the same time.
    ///
    /// # Errors
    /// Ranks that are silent.
    pub fn overlaps(&self, home: &dyn Backend) -> Result<bool> {
        let Some(link) = self.link.as_deref().filter(|_| self.wants_overlap(home.info())) else {
            return Ok(false);
        };
        let limit = self.state().limits.0;
        link.reaches(home, limit).map_err(|f| self.broken(Operation::Sum, f))
    }

    /// Begins the sum of `shards` leaves, of which this rank holds those of [`World::leaves`] in `own`; the numbers of the
    /// last one, which was added by [`Tree::push_open`], are still to come. The order of additions is that of
    /// [`World::sum`]. Waits for what was computed before.
    ///
    /// # Errors
    /// As [`World::sum`].
    pub fn begin_sum(&self, shards: usize, own: Tree) -> Result<RunningSum<'_>> {
        let link = self.link.as_deref().ok_or_else(|| Error::data("a running sum of one rank"))?;
        let at = Arc::clone(own.backend());
        let whole = at.alloc(1, own.width(), DType::F32)?;
        self.meet_for_sum(&*at, own.width(), shards)?;
        let (circles, limit) = (self.circles(shards), self.state().limits.0);
        let summing = Summing { world: self, link, at, circles, limit, moved: Costs::default() };
        Ok(RunningSum { summing, own, whole, sections: Vec::new() })
    }
}

impl RunningSum<'_> {
    /// How many ranks there are.
    pub fn ranks(&self) -> usize {
        self.summing.world.size
    }

    /// The last leaf: numbers that are in it when they are sent are added.
    ///
    /// # Errors
    /// There is no leaf.
    pub fn last(&mut self) -> Result<MatMut<'_>> {
        self.own.last().map(Tensor::mat_mut).ok_or_else(|| Error::data("a sum of no leaves"))
    }

    /// Sends these columns of all leaves, which are final. Does not wait where the communicator does not.
    ///
    /// # Errors
    /// As [`World::sum`].
    pub fn send(&mut self, columns: Range<usize>) -> Result<()> {
        for from in columns.clone().step_by(PIECE) {
            let piece = from..(from + PIECE).min(columns.end);
            let own = self.own.merge(piece.clone())?;
            let widths = vec![self.summing.width(0, &own)];
            let slices = self.summing.scattered(0, &own)?;
            let on_way = self.summing.start(slices)?;
            self.go_on()?;
            self.sections.push(Section { columns: piece, widths, circle: 0, is_finished: false, on_way });
        }
        Ok(())
    }

    /// Every section goes one leg further.
    fn go_on(&mut self) -> Result<()> {
        for section in std::mem::take(&mut self.sections) {
            let next = if section.is_finished { self.outwards(section)? } else { self.inwards(section)? };
            self.sections.extend(next);
        }
        Ok(())
    }

    /// Slices have come: they are merged, and go through the next circle, or are finished.
    fn inwards(&mut self, section: Section) -> Result<Option<Section>> {
        let (summing, circle) = (&mut self.summing, section.circle);
        let received = section.on_way.land(&*summing.at)?;
        let width = section.widths[circle];
        let tree = summing.merged(circle, &received, width)?;
        if circle + 1 == summing.circles.len() {
            let gathered = summing.gathered(circle, tree.close()?, width)?;
            return Ok(Some(Section { is_finished: true, on_way: summing.start(gathered)?, ..section }));
        }
        let nodes = tree.nodes(0..width);
        let mut widths = section.widths;
        widths.push(summing.width(circle + 1, &nodes));
        let scattered = summing.scattered(circle + 1, &nodes)?;
        let on_way = summing.start(scattered)?;
        Ok(Some(Section { widths, circle: circle + 1, on_way, ..section }))
    }

    /// Finished slices have come: they go back to the circle before, or are the sum.
    fn outwards(&mut self, section: Section) -> Result<Option<Section>> {
        let summing = &mut self.summing;
        let sum = section.on_way.land(&*summing.at)?;
        if let Some(circle) = section.circle.checked_sub(1) {
            let gathered = summing.gathered(circle, sum, section.widths[circle])?;
            return Ok(Some(Section { circle, on_way: summing.start(gathered)?, ..section }));
        }
        let to = self.whole.mat_mut().col_range(section.columns.clone());
        summing.at.copy(sum.mat().col_range(0..section.columns.len()), to)?;
        Ok(None)
    }

    /// The sum, when all columns have been sent. Waits.
    ///
    /// # Errors
    /// As [`World::sum`]; an error of another rank after the beginning.
    pub fn finish(mut self) -> Result<Tensor> {
        let at = Arc::clone(&self.summing.at);
        let sent = at.event()?;
        self.settle()?;
        let Summing { world, limit, moved, .. } = self.summing;
        let exchange = at.event()?.since(&sent).unwrap_or_default();
        world.announce(Operation::Summed, Said::within(limit))?;
        world.spent(Costs { exchange: Duration::from_secs_f64(exchange.max(0.0)), ..moved });
        Ok(self.whole)
    }

    fn settle(&mut self) -> Result<()> {
        while !self.sections.is_empty() {
            self.go_on()?;
        }
        let Summing { world, link, at, limit, .. } = &self.summing;
        link.settle(&**at, *limit).map_err(|f| world.broken(Operation::Sum, f))
    }

    /// Goes on for the other ranks' sake, where this one cannot: `columns`, which have not been sent, go as they are. The
    /// others hear of the error where they would hear that the sum is done.
    pub fn abandon(mut self, columns: impl IntoIterator<Item = Range<usize>>) {
        // What goes wrong here is less than what went wrong before.
        let _ = columns.into_iter().try_for_each(|columns| self.send(columns)).and_then(|()| self.settle());
    }
}
