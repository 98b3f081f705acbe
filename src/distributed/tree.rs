//! The order in which leaves are added up: one binary tree over their numbers, whoever holds them.

use std::ops::Range;

/// The leaves that rank `rank` of `size` computes, of `all`.
pub fn leaves_of(rank: usize, size: usize, all: usize) -> Range<usize> {
    rank * all / size..(rank + 1) * all / size
}

/// Sums of consecutive leaves, pushed from left to right: whole subtrees are merged as soon as they can be, so that of n
/// leaves at most log2(n) + 1 sums (or twice that, between other ranks' leaves) are held.
#[derive(Default)]
pub struct Tree {
    nodes: Vec<Node>,
}

/// The sum of leaves `index << level .. (index + 1) << level`.
pub(super) struct Node {
    pub level: u32,
    pub index: usize,
    pub values: Vec<f32>,
}

impl Tree {
    /// Adds leaf number `leaf`, the next one.
    pub fn push(&mut self, leaf: usize, values: Vec<f32>) {
        self.push_node(Node { level: 0, index: leaf, values });
    }

    pub(super) fn push_node(&mut self, mut node: Node) {
        while let Some(left) = self
            .nodes
            .pop_if(|top| top.level == node.level && top.index % 2 == 0 && top.index + 1 == node.index)
        {
            let values = added(left.values, &node.values);
            node = Node { level: left.level + 1, index: left.index / 2, values };
        }
        self.nodes.push(node);
    }

    /// The sums that could not be merged yet, from left to right.
    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The sum of everything that was pushed; `None`: nothing was.
    pub fn close(mut self) -> Option<Vec<f32>> {
        let last = self.nodes.pop()?;
        Some(self.nodes.into_iter().rev().fold(last.values, |sum, node| added(node.values, &sum)))
    }

    /// Level and number of the sums that are left when a rank has pushed `leaves`.
    pub(super) fn shape(leaves: Range<usize>) -> Vec<(u32, usize)> {
        let mut tree = Self::default();
        leaves.for_each(|leaf| tree.push(leaf, Vec::new()));
        tree.nodes.iter().map(|node| (node.level, node.index)).collect()
    }
}

fn added(mut left: Vec<f32>, right: &[f32]) -> Vec<f32> {
    left.iter_mut().zip(right).for_each(|(a, b)| *a += *b);
    left
}
