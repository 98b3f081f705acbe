//! Sums of leaves in their order: the same bits on any number of ranks and machines, in host memory and on devices.

use super::{over, refused};
use crate::support::{numbers, simt};
use gems_engine::backend::cpu::Cpu;
use gems_engine::backend::{Backend, DType};
use gems_engine::distributed::{Costs, DistributedSettings, Threads, Tree, World, leaves_of};
use gems_engine::error::{Error, Result};
use std::sync::Arc;

/// The order of additions by its definition: the leaves up to the largest power of two, and those after.
fn sum_of(leaves: &[Vec<f32>]) -> Vec<f32> {
    let [one] = leaves else {
        let half = leaves.len().next_power_of_two() / 2;
        let (left, right) = (sum_of(&leaves[..half]), sum_of(&leaves[half..]));
        return left.iter().zip(&right).map(|(a, b)| a + b).collect();
    };
    one.clone()
}

/// Numbers of a leaf, of a size of its own: the order of additions shows in the last bits.
fn leaf(number: usize, n: usize) -> Vec<f32> {
    numbers(number as u64, n).into_iter().map(|x| x * 10f32.powi(number as i32 % 7 - 3)).collect()
}

/// The sum of all leaves, in the memory of `be`, and what it cost.
fn sum_on(
    be: &Arc<dyn Backend>,
    world: &World,
    shards: usize,
    n: usize,
) -> Result<(Vec<f32>, Option<Costs>)> {
    let mut tree = Tree::new(be);
    for number in world.leaves(shards) {
        tree.push(number, be.tensor(&leaf(number, n), 1, n, DType::F32)?)?;
    }
    let sum = world.sum(shards, tree)?;
    assert_eq!(sum.shape(), (1, n));
    Ok((be.download(sum.mat())?, world.costs()))
}

/// Ragged sizes, worlds and leaves that are no powers of two, up to sixteen leaves.
const SIZES: [(usize, usize); 9] =
    [(1, 5), (2, 1), (3, 7), (4, 64), (5, 33), (7, 10), (8, 1000), (13, 3), (16, 17)];

fn check(open: impl Fn() -> Arc<dyn Backend> + Sync, ranks_for: impl Fn(usize) -> Vec<Vec<Threads>>) {
    for (shards, n) in SIZES {
        let want = sum_of(&(0..shards).map(|number| leaf(number, n)).collect::<Vec<_>>());
        for ranks in ranks_for(shards) {
            let size = ranks.len();
            for (rank, sum) in over(ranks, |world| sum_on(&open(), world, shards, n)).into_iter().enumerate()
            {
                let (sum, costs) = sum.unwrap();
                assert_eq!(sum, want, "{shards} leaves on {size} ranks, rank {rank}");
                // 2 S (W - 1) / W bytes where each rank holds one sum, up to what fills the slices.
                if let (Some(costs), true) = (costs, shards.is_power_of_two() && size.is_power_of_two()) {
                    assert_eq!(costs.bytes as usize, 2 * 4 * (n.div_ceil(size)) * (size - 1));
                }
            }
        }
    }
}

fn cpu() -> Arc<dyn Backend> {
    Cpu::open(None).unwrap()
}

#[test]
fn sums_do_not_depend_on_the_number_of_ranks() {
    check(cpu, |shards| (1..=shards.min(6)).map(Threads::new).collect());
}

/// Leaves that stay on the device: packed, exchanged and added up there.
#[test]
fn nor_on_where_the_leaves_are() {
    let reaching =
        |ranks: usize| Threads::new(ranks).into_iter().map(Threads::reaching_devices).collect::<Vec<_>>();
    check(
        || simt(DType::F32),
        |shards| [1, 2, 3, 4].into_iter().filter(|ranks| *ranks <= shards).map(reaching).collect(),
    );
    // A communicator that does not reach the device: through the host.
    check(
        || simt(DType::F32),
        |shards| [3].into_iter().filter(|ranks| *ranks <= shards).map(Threads::new).collect(),
    );
}

/// Ranks that are threads, on machines of these names.
fn on_machines(machines: &[&str]) -> Vec<Threads> {
    Threads::new(machines.len()).into_iter().zip(machines).map(|(rank, name)| rank.on(name)).collect()
}

/// Two machines of two, three of one and one of another, one of four, ranks by turns, three of two, two of three.
const LAYOUTS: [&[&str]; 7] = [
    &["a", "a", "b", "b"],
    &["a", "a", "a", "b"],
    &["a", "a", "a", "a"],
    &["a", "b", "a", "b"],
    &["a", "a", "b", "b", "c", "c"],
    &["a", "a", "a", "b", "b", "b"],
    &["a", "a", "b", "b", "a", "a"],
];

#[test]
fn machines_do_not_change_a_bit() {
    for (shards, n) in SIZES {
        let want = sum_of(&(0..shards).map(|number| leaf(number, n)).collect::<Vec<_>>());
        for machines in LAYOUTS.into_iter().filter(|machines| machines.len() <= shards) {
            for sum in over(on_machines(machines), |world| sum_on(&cpu(), world, shards, n)) {
                assert_eq!(sum.unwrap().0, want, "{shards} leaves on {machines:?}");
            }
        }
    }
}

/// The same sum when the last leaf comes in sections of these lengths, the last columns first.
fn running_sum_on(
    be: &Arc<dyn Backend>,
    world: &World,
    (shards, n): (usize, usize),
    sections: &[usize],
) -> Result<Vec<f32>> {
    let (mut tree, own) = (Tree::new(be), world.leaves(shards));
    for number in own.start..own.end - 1 {
        tree.push(number, be.tensor(&leaf(number, n), 1, n, DType::F32)?)?;
    }
    let last = leaf(own.end - 1, n);
    // What is not there yet must not enter.
    tree.push_open(own.end - 1, be.tensor(&vec![f32::NAN; n], 1, n, DType::F32)?);
    let mut sum = world.begin_sum(shards, tree)?;
    let mut end = n;
    for length in sections.iter().cycle() {
        let columns = end - length.min(&end)..end;
        be.upload(&last[columns.clone()], sum.last()?.col_range(columns.clone()))?;
        sum.send(columns.clone())?;
        end = columns.start;
        if end == 0 {
            break;
        }
    }
    be.download(sum.finish()?.mat())
}

#[test]
fn a_sum_that_runs_while_it_is_computed_is_the_same() {
    for (shards, n) in SIZES.into_iter().filter(|(shards, _)| *shards > 1) {
        let want = sum_of(&(0..shards).map(|number| leaf(number, n)).collect::<Vec<_>>());
        for (ranks, sections) in [(2, &[1, 3][..]), (3, &[n]), (4, &[5, 1, 700]), (5, &[2])] {
            let ranks = || Threads::new(ranks.min(shards)).into_iter().map(Threads::reaching_devices);
            let on_cpu = |world: &World| running_sum_on(&cpu(), world, (shards, n), sections);
            let on_device = |world: &World| running_sum_on(&simt(DType::F32), world, (shards, n), sections);
            let mut all = over(ranks().collect(), on_cpu);
            all.extend(over(ranks().collect(), on_device));
            for sum in all {
                assert_eq!(sum.unwrap(), want, "{shards} leaves in sections of {sections:?}");
            }
        }
    }
}

/// A rank that fails while its sum runs lets the others finish it, and they hear why.
#[test]
fn an_error_within_a_running_sum_is_everybodys() {
    let said = refused(over(Threads::new(3), |world| {
        if world.rank() != 1 {
            return running_sum_on(&cpu(), world, (3, 10), &[4]);
        }
        let mut tree = Tree::new(&cpu());
        tree.push_open(1, tree_of_ones(10)?);
        let mut sum = world.begin_sum(3, tree)?;
        sum.send(6..10)?;
        sum.abandon([2..6, 0..2]);
        Err(Error::device("it is full"))
    }));
    assert_eq!(said.len(), 3);
    assert!(said.iter().all(|text| text.contains("it is full")), "{said:?}");
    assert!(said[0].contains("rank 1") && said[2].contains("rank 1"), "{said:?}");
}

fn tree_of_ones(n: usize) -> Result<gems_engine::backend::Tensor> {
    cpu().tensor(&vec![1.0; n], 1, n, DType::F32)
}

#[test]
fn nor_do_machines_change_it() {
    for (shards, n) in SIZES {
        let want = sum_of(&(0..shards).map(|number| leaf(number, n)).collect::<Vec<_>>());
        for machines in LAYOUTS.into_iter().filter(|machines| machines.len() <= shards) {
            for sum in
                over(on_machines(machines), |world| running_sum_on(&cpu(), world, (shards, n), &[3, 1]))
            {
                assert_eq!(sum.unwrap(), want, "{shards} leaves on {machines:?}");
            }
        }
    }
}

/// By itself it runs where ranks have GPUs on several machines; settings decide otherwise.
#[test]
fn sums_run_where_it_pays_or_is_asked_for() {
    let wants = |machines: &[&str], overlap: Option<bool>, be: fn() -> Arc<dyn Backend>| {
        let all = over(on_machines(machines), |world| {
            world.follow(&DistributedSettings { overlap, ..DistributedSettings::default() });
            Ok(world.wants_overlap(be().info()))
        });
        let all: Vec<bool> = all.into_iter().map(Result::unwrap).collect();
        assert!(all.iter().all(|one| *one == all[0]));
        all[0]
    };
    let device = || simt(DType::F32);
    assert!(wants(&["a", "b", "c"], None, device) && wants(&["a", "a", "b"], None, device));
    for (machines, be) in [(["a", "b", "c"], cpu as fn() -> _), (["a", "a", "a"], device)] {
        assert!(!wants(&machines, None, be) && wants(&machines, Some(true), be));
    }
    assert!(!wants(&["a", "b"], Some(false), device));
    assert!(!World::alone().wants_overlap(device().info()));
}

/// What leaves a machine: 2 S (M - 1) of M machines' ranks together, and not that of each rank, where they are alike.
#[test]
fn two_levels_send_little_between_machines() {
    let n = 4800;
    let outside = |machines: &[&str], shards: usize| -> Vec<u64> {
        let costs = over(on_machines(machines), |world| sum_on(&cpu(), world, shards, n));
        costs.into_iter().map(|one| one.unwrap().1.unwrap().outside).collect()
    };
    let s = 4 * n as u64;
    // Each of h ranks of M machines sends 2 (S / h) (M - 1) / M.
    assert_eq!(outside(&["a", "a", "b", "b"], 4), [s / 2; 4]);
    assert_eq!(outside(&["a", "a", "b", "b", "c", "c"], 6), outside(&["a", "a", "b", "b", "c", "c"], 12));
    assert_eq!(outside(&["a", "a", "a", "a"], 4), [0; 4]);
    // In one level 2 S / W to each rank elsewhere.
    assert_eq!(outside(&["a", "b", "a", "b"], 4), [s; 4]);
    assert_eq!(outside(&["a", "a", "a", "b"], 4), [s / 2, s / 2, s / 2, 3 * s / 2]);
}

#[test]
fn leaves_are_shared_out_whole_and_in_order() {
    for (size, all) in [(1, 1), (3, 4), (4, 4), (5, 16), (7, 9)] {
        let shared: Vec<usize> = (0..size).flat_map(|rank| leaves_of(rank, size, all)).collect();
        assert_eq!(shared, (0..all).collect::<Vec<_>>());
        assert!((0..size).all(|rank| !leaves_of(rank, size, all).is_empty()));
    }
}
