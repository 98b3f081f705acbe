//! Sums of leaves over all ranks, in the order of their tree and in the memory that the leaves are in.
//!
//! Every rank sends slice j of what it holds to rank j, which finishes the tree for its slice; then all gather. Where
//! several machines have several ranks each, that is done twice: the ranks of a machine merge their subtrees slice by
//! slice, and the ranks of one slice do the same between the machines. The tree is the same, and so are the bits.

use super::{Costs, Member, Said, World};
use crate::backend::{Backend, DType, Mat, Tensor, cpu::Cpu};
use crate::distributed::communicator::{Communicator, OnWay, Parts, Passage};
use crate::distributed::tree::{Node, Tree, leaves_of, moved_between, shape};
use crate::distributed::word::Operation;
use crate::error::Result;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Numbers of a sum that are exchanged at a time (16 MB).
pub(super) const PIECE: usize = 4 << 20;

/// Ranks that exchange with each other, this one among them.
pub(super) struct Circle {
    pub ranks: Vec<usize>,
    /// Level and number of the sums that each brings.
    shapes: Vec<Vec<(u32, usize)>>,
}

/// What is about to be exchanged.
pub(super) struct Shipment {
    send: Tensor,
    to: Tensor,
    parts: Parts,
}

/// A sum on its way.
pub(super) struct Summing<'a> {
    pub world: &'a World,
    pub link: &'a dyn Communicator,
    pub at: Arc<dyn Backend>,
    /// First those of a machine, if that is apart, then those of all machines.
    pub circles: Vec<Circle>,
    pub limit: Duration,
    pub moved: Costs,
}

impl World {
    /// The sum of `shards` leaves, of which this rank holds those of [`World::leaves`] in `own`: *f32* `[1 x n]` where they
    /// are. The order of additions depends on `shards` only. Waits.
    ///
    /// # Errors
    /// Ranks that sum something else, or are silent; the device.
    pub fn sum(&self, shards: usize, own: Tree) -> Result<Tensor> {
        let Some(link) = self.link.as_deref() else { return own.close() };
        let (limit, n, home) = (self.state().limits.0, own.width(), Arc::clone(own.backend()));
        let mut whole = home.alloc(1, n, DType::F32)?;
        let start = self.meet_for_sum(&*home, n, shards)?;
        let reached = link.reaches(&*home, limit).map_err(|f| self.broken(Operation::Sum, f))?;
        let own = if reached { own } else { own.moved_to(&self.host()?)? };
        let (at, circles) = (Arc::clone(own.backend()), self.circles(shards));
        let is_home = Arc::ptr_eq(&at, &home);
        let mut summing = Summing { world: self, link, at, circles, limit, moved: Costs::default() };
        for from in (0..n).step_by(PIECE) {
            let piece = from..(from + PIECE).min(n);
            let mut sum = summing.through(0, &own.nodes(piece.clone()))?;
            if !is_home {
                sum = moved_between(&*summing.at, &sum, &*home)?;
            }
            home.copy(sum.mat().col_range(0..piece.len()), whole.mat_mut().col_range(piece))?;
        }
        self.spent(Costs { exchange: start.elapsed(), ..summing.moved });
        Ok(whole)
    }

    /// Waits for what is computed in `home`, and for the other ranks, who are about to sum as many numbers.
    pub(super) fn meet_for_sum(&self, home: &dyn Backend, n: usize, shards: usize) -> Result<Instant> {
        // Who still computes does not wait for others, and they wait for it.
        home.synchronize()?;
        let limit = self.state().limits.0;
        let said = Said { size: (n as u64) << 16 ^ shards as u64, ..Said::within(limit) };
        self.announce(Operation::Sum, said)?;
        Ok(Instant::now())
    }

    /// Adds to what sums have cost.
    pub(super) fn spent(&self, costs: Costs) {
        let mut state = self.state();
        state.costs.bytes += costs.bytes;
        state.costs.outside += costs.outside;
        state.costs.exchange += costs.exchange;
        state.since = Instant::now();
    }

    /// The processor and its memory: where leaves are added up that the communicator does not reach, or that a GPU has no
    /// room for.
    ///
    /// # Errors
    /// As [`Cpu::open`].
    pub fn host(&self) -> Result<Arc<dyn Backend>> {
        if let Some(host) = self.host.get() {
            return Ok(Arc::clone(host));
        }
        let opened = Cpu::open(None)?;
        Ok(Arc::clone(self.host.get_or_init(|| opened)))
    }

    /// Ranks of each machine, where machines have equally many, several, that follow each other, and there are several.
    fn per_machine(&self) -> Option<usize> {
        let host = |rank: usize| self.members[rank].host.as_str();
        let here = (0..self.size).take_while(|rank| host(*rank) == host(0)).count();
        let machines: Vec<&[Member]> = self.members.chunks(here.max(1)).collect();
        let alike = |ranks: &&[Member]| ranks.len() == here && ranks.iter().all(|m| m.host == ranks[0].host);
        let names: BTreeSet<&str> = machines.iter().map(|m| m[0].host.as_str()).collect();
        let regular = machines.iter().all(alike) && names.len() == machines.len();
        (regular && here > 1 && machines.len() > 1).then_some(here)
    }

    /// Who exchanges with whom, one after the other, and what each brings.
    pub(super) fn circles(&self, shards: usize) -> Vec<Circle> {
        let Some(here) = self.per_machine() else { return vec![self.circle(0..self.size, shards)] };
        let (first, local) = (self.rank / here * here, self.rank % here);
        let machines = (0..self.size).step_by(here);
        let between = Circle {
            ranks: machines.clone().map(|first| first + local).collect(),
            shapes: machines.map(|first| self.held(first..first + here, shards)).collect(),
        };
        vec![self.circle(first..first + here, shards), between]
    }

    /// Ranks that bring what each has.
    fn circle(&self, ranks: Range<usize>, shards: usize) -> Circle {
        let shapes = ranks.clone().map(|rank| self.held(rank..rank + 1, shards)).collect();
        Circle { ranks: ranks.collect(), shapes }
    }

    /// Level and number of the sums that these ranks hold together.
    fn held(&self, ranks: Range<usize>, shards: usize) -> Vec<(u32, usize)> {
        let leaves = |rank| leaves_of(rank, self.size, shards);
        shape(leaves(ranks.start).start..leaves(ranks.end - 1).end)
    }
}

impl Summing<'_> {
    /// The sum of a piece over circle number `circle` and those after it: `[1 x n]` at least, of which the first n count.
    fn through(&mut self, circle: usize, own: &[Node<Mat<'_>>]) -> Result<Tensor> {
        let width = self.width(circle, own);
        let scattered = self.scattered(circle, own)?;
        let received = self.exchange(scattered)?;
        let tree = self.merged(circle, &received, width)?;
        let slice = match circle + 1 == self.circles.len() {
            true => tree.close()?,
            false => self.through(circle + 1, &tree.nodes(0..width))?,
        };
        let gathered = self.gathered(circle, slice, width)?;
        self.exchange(gathered)
    }

    /// How long a circle's slices of a piece are.
    pub(super) fn width(&self, circle: usize, own: &[Node<Mat<'_>>]) -> usize {
        own.first().map_or(0, |node| node.values.cols).div_ceil(self.circles[circle].ranks.len())
    }

    /// What goes to all of a circle, so that each has its slice of what all hold.
    pub(super) fn scattered(&mut self, circle: usize, own: &[Node<Mat<'_>>]) -> Result<Shipment> {
        let width = self.width(circle, own);
        let Circle { ranks, shapes } = &self.circles[circle];
        let (count, held) = (ranks.len(), own.len() * width);
        let receive: Vec<usize> = shapes.iter().map(|shape| shape.len() * width).collect();
        let parts: Vec<Range<usize>> = (0..count).map(|k| k * held..(k + 1) * held).collect();
        let send = self.slices(own, width, count)?;
        self.shipment(circle, send, &parts, &receive)
    }

    /// A finished slice, of which `width` columns count, for all of a circle.
    pub(super) fn gathered(&mut self, circle: usize, slice: Tensor, width: usize) -> Result<Shipment> {
        let count = self.circles[circle].ranks.len();
        self.shipment(circle, slice, &vec![0..width; count], &vec![width; count])
    }

    /// This rank's slice of what all of a circle hold, merged as far as it can be.
    pub(super) fn merged(&self, circle: usize, received: &Tensor, width: usize) -> Result<Tree> {
        let mut tree = Tree::new(&self.at);
        for (k, (level, index)) in self.circles[circle].shapes.iter().flatten().copied().enumerate() {
            let values = received.mat().col_range(k * width..(k + 1) * width);
            tree.push_node(Node { level, index, values: self.at.duplicate(values, DType::F32)? })?;
        }
        Ok(tree)
    }

    /// Slice after slice, each of every sum; short slices are filled up with zeros.
    fn slices(&self, own: &[Node<Mat<'_>>], width: usize, count: usize) -> Result<Tensor> {
        let n = own.first().map_or(0, |node| node.values.cols);
        let mut send = self.at.alloc(1, own.len() * width * count, DType::F32)?;
        if width * count > n {
            self.at.fill(send.mat_mut(), 0.0)?;
        }
        for k in 0..count {
            let slice = (k * width).min(n)..((k + 1) * width).min(n);
            for (i, node) in own.iter().enumerate() {
                let at = (k * own.len() + i) * width;
                let to = send.mat_mut().col_range(at..at + slice.len());
                self.at.copy(node.values.col_range(slice.clone()), to)?;
            }
        }
        Ok(send)
    }

    /// For a circle: `parts` of `send` to each, and as many numbers from each as `receive` says.
    fn shipment(
        &mut self,
        circle: usize,
        send: Tensor,
        parts: &[Range<usize>],
        receive: &[usize],
    ) -> Result<Shipment> {
        let (world, to) = (self.world, self.at.alloc(1, receive.iter().sum(), DType::F32)?);
        let mut all = Parts { send: vec![0..0; world.size], receive: vec![0..0; world.size] };
        let mut from = 0;
        for ((rank, part), count) in self.circles[circle].ranks.iter().zip(parts).zip(receive) {
            (all.send[*rank], all.receive[*rank]) = (part.clone(), from..from + count);
            from += count;
            if *rank != world.rank {
                let bytes = 4 * part.len() as u64;
                let leaves = world.members[*rank].host != world.members[world.rank].host;
                self.moved.bytes += bytes;
                self.moved.outside += if leaves { bytes } else { 0 };
            }
        }
        Ok(Shipment { send, to, parts: all })
    }

    fn exchange(&self, Shipment { send, to, parts }: Shipment) -> Result<Tensor> {
        let passage = Passage { send, to, parts: &parts, at: &*self.at };
        self.link.exchange(passage, self.limit).map_err(|f| self.world.broken(Operation::Sum, f))
    }

    /// The same, not waited for.
    pub(super) fn start(&self, Shipment { send, to, parts }: Shipment) -> Result<OnWay> {
        let passage = Passage { send, to, parts: &parts, at: &*self.at };
        self.link.start(passage, self.limit).map_err(|f| self.world.broken(Operation::Sum, f))
    }
}
