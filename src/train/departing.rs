//! The last pass of a step on a rank, of which gradients leave for their sum over all ranks while it goes backward.
//!
//! The layers' numbers are cut into sections, from the last layer to the first, as the backward pass meets them. All ranks
//! send the same sections in the same order, and send what nothing was seen of at the end.

use crate::backend::Mat;
use crate::distributed::RunningSum;
use crate::error::{Error, Result};
use crate::gems::{LeafLayout, Optimizer};
use crate::layers::{LinearGradient, Tap, Want};
use std::ops::Range;

/// Sections at most. The last one to leave hides behind nothing, so there should be several; but each costs a message to
/// every rank, twice, and so there are fewer the more ranks there are.
const SECTIONS: usize = 8;
/// Messages to others of all sections together, where each is sent so many.
const MESSAGES: usize = 512;

/// Layers whose numbers leave together.
struct Section {
    layers: Range<usize>,
    /// How many of them have not been seen.
    missing: usize,
}

/// A tuner whose gradients leave.
pub(super) struct Departing<'a, 'w> {
    tuner: &'a mut Optimizer,
    sum: RunningSum<'w>,
    layout: LeafLayout,
    /// From the last layer to the first.
    sections: Vec<Section>,
    sent: usize,
}

impl<'a, 'w> Departing<'a, 'w> {
    /// What `tuner` observes from here on is the last of a leaf that is laid out so, the last one in `sum`.
    pub fn new(tuner: &'a mut Optimizer, sum: RunningSum<'w>, layout: LeafLayout) -> Self {
        let count = (MESSAGES / sum.ranks()).clamp(2, SECTIONS);
        let sections = sections(&layout.layers, layout.rest.start.div_ceil(count));
        Self { tuner, sum, layout, sections, sent: 0 }
    }

    pub fn tuner(&mut self) -> &mut Optimizer {
        self.tuner
    }

    /// Sends what has not left; then the sum takes its course. `beside` ends the leaf.
    ///
    /// # Errors
    /// The device; ranks that do something else, or are silent.
    pub fn finish(&mut self, beside: &[f32]) -> Result<()> {
        while self.sent < self.sections.len() {
            self.send()?;
        }
        let rest = self.layout.rest.clone();
        self.tuner.take_rest(beside, self.sum.last()?.col_range(rest.clone()))?;
        self.sum.send(rest)
    }

    /// The sum, of which all has left.
    pub fn sum(self) -> RunningSum<'w> {
        self.sum
    }

    /// Goes on for the other ranks' sake where this one has failed.
    pub fn abandon(self) {
        let left = self.sections.iter().skip(self.sent).map(|section| columns(&self.layout, section));
        self.sum.abandon(left.chain([self.layout.rest.clone()]));
    }

    /// Sends the next section.
    fn send(&mut self) -> Result<()> {
        let section = &self.sections[self.sent];
        for layer in section.layers.clone() {
            let to = self.sum.last()?.col_range(self.layout.layers[layer].clone());
            self.tuner.take_layer(layer, to)?;
        }
        self.sent += 1;
        self.sum.send(columns(&self.layout, section))
    }

    /// What leaves when a layer's gradient is final.
    fn saw(&mut self, layer: usize) -> Result<()> {
        let of_layer = self.sections.iter().position(|section| section.layers.contains(&layer));
        // Layers that are not adapted have a gradient too, and no place in the sum.
        let Some(section) = of_layer.filter(|_| !self.layout.layers[layer].is_empty()) else { return Ok(()) };
        if section < self.sent {
            return Err(Error::data(format!("layer {layer} has a gradient after its sum was begun")));
        }
        self.sections[section].missing -= 1;
        while self.sections.get(self.sent).is_some_and(|section| section.missing == 0) {
            self.send()?;
        }
        Ok(())
    }
}

/// From the last layer to the first, each with at least `least` numbers, if there are as many; every layer is in one.
fn sections(layers: &[Range<usize>], least: usize) -> Vec<Section> {
    let mut sections = Vec::new();
    let mut end = layers.len();
    for first in (0..layers.len()).rev() {
        if layers[end - 1].end - layers[first].start >= least || first == 0 {
            let missing = layers[first..end].iter().filter(|columns| !columns.is_empty()).count();
            sections.push(Section { layers: first..end, missing });
            end = first;
        }
    }
    sections
}

fn columns(layout: &LeafLayout, section: &Section) -> Range<usize> {
    let layers = &layout.layers[section.layers.clone()];
    layers.first().map_or(0, |first| first.start)..layers.last().map_or(0, |last| last.end)
}

impl Tap for Departing<'_, '_> {
    fn linear(&mut self, site: usize, gradient: &LinearGradient) -> Result<()> {
        self.tuner.linear(site, gradient)?;
        self.saw(site)
    }

    fn wants(&self, index: usize) -> Want {
        self.tuner.wants(index)
    }

    fn dense(&mut self, index: usize, blocks: Mat) -> Result<()> {
        self.tuner.dense(index, blocks)
    }
}
