//! A trie of token sequences: what the candidates of a request share is computed once.

/// Token sequences as a tree, in depth-first order: a node's subtree is the range `node..end`, children
/// follow each other by ascending token. Node 0 is the root: the prompt, with no token of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Trie {
    nodes: Vec<Node>,
    ends: Vec<u32>,
    targets: Vec<Option<u32>>,
    /// Nodes with children, ascending.
    inner: Vec<u32>,
    largest: Option<u32>,
    height: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Node {
    token: u32,
    parent: u32,
    depth: u32,
    end: u32,
}

/// The root's number.
pub const ROOT: u32 = 0;

impl Trie {
    /// The trie of `sequences`, which are numbered in the order given. Equal sequences share their last node;
    /// an empty one ends at the root.
    pub fn new(sequences: &[Vec<u32>]) -> Self {
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by(|a, b| sequences[*a].cmp(&sequences[*b]).then(a.cmp(b)));
        let mut nodes = vec![Node { token: 0, parent: 0, depth: 0, end: 0 }];
        let mut ends = vec![ROOT; sequences.len()];
        let mut targets = vec![None];
        // The path of the sequence before: in sorted order a prefix, once left, never comes back.
        let mut path: Vec<u32> = vec![ROOT];
        let mut last: &[u32] = &[];
        for number in order {
            let sequence = &sequences[number];
            let shared = last.iter().zip(sequence).take_while(|(a, b)| a == b).count();
            close(&mut nodes, &mut path, shared);
            for token in &sequence[shared..] {
                let (parent, depth) = (path[path.len() - 1], path.len() as u32);
                path.push(nodes.len() as u32);
                nodes.push(Node { token: *token, parent, depth, end: 0 });
                targets.push(None);
            }
            let end = path[path.len() - 1];
            ends[number] = end;
            targets[end as usize].get_or_insert(number as u32);
            last = sequence;
        }
        close(&mut nodes, &mut path, 0);
        nodes[0].end = nodes.len() as u32;
        let inner =
            (0..).zip(&nodes).filter(|(number, node)| node.end > number + 1).map(|(number, _)| number);
        let (inner, largest) = (inner.collect::<Vec<u32>>(), nodes[1..].iter().map(|node| node.token).max());
        let height = inner.iter().map(|number| nodes[*number as usize].depth).max().unwrap_or(0);
        Self { nodes, ends, targets, inner, largest, height }
    }

    /// Number of nodes, the root included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }
    /// Whether there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.nodes.len() == 1
    }
    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.ends.len()
    }
    /// The node at which sequence `number` ends.
    pub fn end_of(&self, number: usize) -> u32 {
        self.ends[number]
    }
    /// The first sequence that ends at `node`.
    pub fn sequence_at(&self, node: u32) -> Option<u32> {
        self.targets[node as usize]
    }
    /// The token that leads to `node` (meaningless for the root).
    pub fn token(&self, node: u32) -> u32 {
        self.nodes[node as usize].token
    }
    /// The node before `node` (the root is its own).
    pub fn parent(&self, node: u32) -> u32 {
        self.nodes[node as usize].parent
    }
    /// Tokens from the root to `node`.
    pub fn depth(&self, node: u32) -> u32 {
        self.nodes[node as usize].depth
    }
    /// Whether a sequence goes on behind `node`.
    pub fn is_inner(&self, node: u32) -> bool {
        self.nodes[node as usize].end > node + 1
    }
    /// The nodes behind `node`, by ascending token.
    pub fn children(&self, node: u32) -> impl Iterator<Item = u32> + '_ {
        let end = self.nodes[node as usize].end;
        let first = (node + 1 < end).then_some(node + 1);
        std::iter::successors(first, move |c| Some(self.nodes[*c as usize].end).filter(|next| *next < end))
    }
    /// The nodes from below the root down to `node`, itself included; empty for the root.
    pub fn path(&self, node: u32) -> Vec<u32> {
        let up = std::iter::successors(Some(node), |n| Some(self.parent(*n)));
        let mut path: Vec<u32> = up.take_while(|n| *n != ROOT).collect();
        path.reverse();
        path
    }
    /// The inner nodes of the subtree of `node`, ascending, itself among them.
    pub fn inner_of(&self, node: u32) -> &[u32] {
        let until = self.nodes[node as usize].end;
        let at = |limit: u32| self.inner.partition_point(|inner| *inner < limit);
        &self.inner[at(node)..at(until)]
    }
    /// Every node that must be computed, because a token is predicted from it: the root and the inner nodes, ascending.
    pub fn inner(&self) -> &[u32] {
        &self.inner
    }
    /// The depth of the deepest inner node: so many tokens behind a prompt are ever rows.
    pub fn height(&self) -> u32 {
        self.height
    }
    /// The largest token of any node; `None`: there is nothing but the root.
    pub fn largest_token(&self) -> Option<u32> {
        self.largest
    }
}

/// Leaves all nodes of the path that are deeper than `depth`: nothing will be added below them any more.
fn close(nodes: &mut [Node], path: &mut Vec<u32>, depth: usize) {
    let end = nodes.len() as u32;
    for node in path.drain(depth + 1..) {
        nodes[node as usize].end = end;
    }
}
