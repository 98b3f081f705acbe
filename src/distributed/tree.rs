//! The order in which leaves are added up: one binary tree over their numbers, whoever holds them.

use crate::backend::{Backend, Mat, Tensor};
use crate::error::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// Numbers that one operation of a device goes over at most (1 GiB): views count their columns in 32 bits.
const MOST: usize = 1 << 28;

/// The leaves that rank `rank` of `size` computes, of `all`.
pub fn leaves_of(rank: usize, size: usize, all: usize) -> Range<usize> {
    rank * all / size..(rank + 1) * all / size
}

/// The sum of leaves `index << level .. (index + 1) << level`.
pub(super) struct Node<V> {
    pub level: u32,
    pub index: usize,
    pub values: V,
}

/// Whether a sum and the one at `(level, index)` are halves of one.
fn are_halves<V>(left: &Node<V>, (level, index): (u32, usize)) -> bool {
    left.level == level && left.index.is_multiple_of(2) && left.index + 1 == index
}

/// Appends the next sum to those before it: whole subtrees are merged as soon as they can be.
fn append<V>(nodes: &mut Vec<Node<V>>, mut node: Node<V>, add: impl Fn(V, V) -> Result<V>) -> Result<()> {
    while let Some(left) = nodes.pop_if(|top| are_halves(top, (node.level, node.index))) {
        let values = add(left.values, node.values)?;
        node = Node { level: left.level + 1, index: left.index / 2, values };
    }
    nodes.push(node);
    Ok(())
}

/// Level and number of the sums that are left when `leaves` have been pushed.
pub(super) fn shape(leaves: Range<usize>) -> Vec<(u32, usize)> {
    let mut nodes = Vec::new();
    for index in leaves {
        // Nothing is added up, so nothing fails.
        let _ = append(&mut nodes, Node { level: 0, index, values: () }, |(), ()| Ok(()));
    }
    nodes.iter().map(|node| (node.level, node.index)).collect()
}

/// Sums of consecutive leaves in the memory of a device, pushed from left to right. Of n leaves at most log2(n) + 1 sums
/// (or twice that, between other ranks' leaves) are held.
pub struct Tree {
    backend: Arc<dyn Backend>,
    nodes: Vec<Node<Tensor>>,
}

impl Tree {
    /// No leaves yet; those to come are in the memory of `backend`.
    pub fn new(backend: &Arc<dyn Backend>) -> Self {
        Self { backend: Arc::clone(backend), nodes: Vec::new() }
    }

    /// Adds leaf number `leaf`, the next one: *f32* `[1 x n]`.
    ///
    /// # Errors
    /// The device.
    pub fn push(&mut self, leaf: usize, values: Tensor) -> Result<()> {
        self.push_node(Node { level: 0, index: leaf, values })
    }

    /// Adds the last leaf, whose numbers are still to come: some at a time they are put into [`Tree::last`] and merged.
    pub fn push_open(&mut self, leaf: usize, values: Tensor) {
        self.nodes.push(Node { level: 0, index: leaf, values });
    }

    /// The last leaf's numbers.
    pub fn last(&mut self) -> Option<&mut Tensor> {
        self.nodes.last_mut().map(|node| &mut node.values)
    }

    /// Does with `columns` of the last leaf what [`Tree::push`] does with all of them; the sums of these that are left.
    pub(super) fn merge(&mut self, columns: Range<usize>) -> Result<Vec<Node<Mat<'_>>>> {
        let last = self.nodes.len().saturating_sub(1);
        let mut place = self.nodes.last().map_or((0, 0), |leaf| (leaf.level, leaf.index));
        let mut kept = last;
        while kept > 0 && are_halves(&self.nodes[kept - 1], place) {
            place = (place.0 + 1, place.1 / 2);
            let (left, right) = self.nodes.split_at_mut(kept);
            let to = left[kept - 1].values.mat_mut().col_range(columns.clone());
            self.backend.axpy(1.0, right[0].values.mat().col_range(columns.clone()), to)?;
            kept -= 1;
        }
        let mut left = self.nodes(columns);
        left.truncate(kept + 1);
        left.iter_mut().skip(kept).for_each(|node| (node.level, node.index) = place);
        Ok(left)
    }

    pub(super) fn push_node(&mut self, node: Node<Tensor>) -> Result<()> {
        let be = &*self.backend;
        append(&mut self.nodes, node, |left, right| added(be, left, right.mat()))
    }

    pub(super) fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// How many numbers a leaf has.
    pub(super) fn width(&self) -> usize {
        self.nodes.first().map_or(0, |node| node.values.cols())
    }

    /// Numbers `piece` of the sums that could not be merged yet, from left to right.
    pub(super) fn nodes(&self, piece: Range<usize>) -> Vec<Node<Mat<'_>>> {
        let mut views = Vec::new();
        for Node { level, index, values } in &self.nodes {
            let values = values.mat().col_range(piece.clone());
            views.push(Node { level: *level, index: *index, values });
        }
        views
    }

    /// The same in the memory of another device. Waits.
    pub(super) fn moved_to(self, backend: &Arc<dyn Backend>) -> Result<Self> {
        let mut moved = Self::new(backend);
        for Node { level, index, values } in self.nodes {
            let values = moved_between(&*self.backend, &values, &**backend)?;
            moved.nodes.push(Node { level, index, values });
        }
        Ok(moved)
    }

    /// The sum of everything that was pushed.
    ///
    /// # Errors
    /// The device; nothing was pushed.
    pub fn close(mut self) -> Result<Tensor> {
        let last = self.nodes.pop().ok_or_else(|| Error::data("a sum of no leaves"))?;
        let mut sum = last.values;
        for node in self.nodes.into_iter().rev() {
            sum = added(&*self.backend, node.values, sum.mat())?;
        }
        Ok(sum)
    }
}

/// A copy in the memory of another device.
pub(super) fn moved_between(from: &dyn Backend, values: &Tensor, to: &dyn Backend) -> Result<Tensor> {
    to.tensor(&from.download(values.mat())?, values.rows(), values.cols(), values.dtype())
}

/// `left + right`, in the place of `left`.
fn added(be: &dyn Backend, mut left: Tensor, right: Mat) -> Result<Tensor> {
    let n = left.cols();
    for from in (0..n).step_by(MOST) {
        let some = from..(from + MOST).min(n);
        be.axpy(1.0, right.col_range(some.clone()), left.mat_mut().col_range(some))?;
    }
    Ok(left)
}
