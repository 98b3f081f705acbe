//! Sums in their order, shared results, and errors that all ranks hear.

use super::{on_ranks, refused};
use crate::support::numbers;
use gems_engine::distributed::{DistributedSettings, Tree, World, leaves_of};
use gems_engine::error::{Error, Kind};

/// The order of additions by its definition: the leaves up to the largest power of two, and those after.
fn sum_of(leaves: &[Vec<f32>]) -> Vec<f32> {
    let [one] = leaves else {
        let half = leaves.len().next_power_of_two() / 2;
        let (left, right) = (sum_of(&leaves[..half]), sum_of(&leaves[half..]));
        return left.iter().zip(&right).map(|(a, b)| a + b).collect();
    };
    one.clone()
}

#[test]
fn sums_do_not_depend_on_the_number_of_ranks() {
    for (shards, n) in [(1, 5), (2, 1), (3, 7), (4, 64), (5, 33), (7, 10), (8, 1000), (13, 3), (16, 17)] {
        let leaf = |leaf: usize| {
            let values = numbers(leaf as u64, n);
            values.into_iter().map(|x| x * 10f32.powi(leaf as i32 % 7 - 3)).collect::<Vec<f32>>()
        };
        let want = sum_of(&(0..shards).map(leaf).collect::<Vec<_>>());
        for ranks in 1..=shards.min(6) {
            let sums = on_ranks(ranks, |world| {
                let mut tree = Tree::default();
                world.leaves(shards).for_each(|k| tree.push(k, leaf(k)));
                let sum = world.sum(shards, tree)?;
                Ok((sum, world.costs()))
            });
            for (rank, sum) in sums.into_iter().enumerate() {
                let (sum, costs) = sum.unwrap();
                assert_eq!(sum, want, "{shards} leaves on {ranks} ranks, rank {rank}");
                // 2 S (W - 1) / W bytes where each rank holds one sum, up to what fills the slices.
                if let (Some(costs), true) = (costs, shards.is_power_of_two() && ranks.is_power_of_two()) {
                    assert_eq!(costs.bytes as usize, 2 * 4 * (n.div_ceil(ranks)) * (ranks - 1));
                }
            }
        }
    }
}

#[test]
fn leaves_are_shared_out_whole_and_in_order() {
    for (size, all) in [(1, 1), (3, 4), (4, 4), (5, 16), (7, 9)] {
        let shared: Vec<usize> = (0..size).flat_map(|rank| leaves_of(rank, size, all)).collect();
        assert_eq!(shared, (0..all).collect::<Vec<_>>());
        assert!((0..size).all(|rank| !leaves_of(rank, size, all).is_empty()));
    }
}

#[test]
fn results_come_in_the_order_of_ranks_whatever_their_length() {
    let texts = ["", "a", "some more", ""];
    for all in on_ranks(4, |world| world.share(texts[world.rank()].as_bytes())) {
        assert_eq!(all.unwrap(), texts.map(|text| text.as_bytes().to_vec()));
    }
    for (ranks, count) in [(1, 5), (3, 7), (4, 2), (2, 0)] {
        for all in on_ranks(ranks, |world| world.in_turns(count, |k| Ok(k * k))) {
            assert_eq!(all.unwrap(), (0..count).map(|k| k * k).collect::<Vec<_>>());
        }
    }
    for decided in on_ranks(3, |world| Ok([world.any(world.rank() == 2)?, world.any(false)?])) {
        assert_eq!(decided.unwrap(), [true, false]);
    }
    for given in on_ranks(3, |world| world.of_first(world.rank() + 7)) {
        assert_eq!(given.unwrap(), 7);
    }
}

#[test]
fn an_error_of_one_rank_is_everybodys_wherever_they_are() {
    let places: [fn(&World) -> gems_engine::error::Result<()>; 5] = [
        |world| world.any(false).map(drop),
        |world| world.share(b"x").map(drop),
        |world| world.by_first(|| Ok(())).map(drop),
        |world| world.same("the answer", "42"),
        |world| {
            let mut tree = Tree::default();
            world.leaves(4).for_each(|k| tree.push(k, vec![1.0]));
            world.sum(4, tree).map(drop)
        },
    ];
    for place in places {
        let all = on_ranks(3, |world| match world.rank() {
            2 => Err(Error::new(Kind::Memory, "nothing is left").at("layer 7").remedy("buy more")),
            _ => place(world),
        });
        let kinds: Vec<Kind> = all.iter().map(|one| one.as_ref().unwrap_err().kind).collect();
        assert_eq!(kinds, [Kind::Memory; 3]);
        let said = refused(all);
        assert!(
            said.iter().all(|text| text.contains("layer 7: nothing is left\n  try: buy more")),
            "{said:?}"
        );
        assert!(said[0].starts_with("rank 2 (host "), "{}", said[0]);
    }
}

#[test]
fn the_first_ranks_failure_stops_all() {
    let said = refused(on_ranks(3, |world| world.by_first(|| Err::<(), _>(Error::data("the disk is full")))));
    assert!(said.iter().all(|text| text.contains("the disk is full")), "{said:?}");
}

#[test]
fn ranks_that_do_different_things_are_told_apart() {
    let said = refused(on_ranks(3, |world| match world.rank() {
        1 => world.share(b"").map(drop),
        _ => world.any(true).map(drop),
    }));
    for text in said {
        assert!(
            text.contains("came to a decision") && text.contains("came to the exchange of results"),
            "{text}"
        );
        assert!(text.contains("rank 1 (host "), "{text}");
    }
    let said = refused(on_ranks(2, |world| {
        let mut tree = Tree::default();
        world.leaves(2).for_each(|k| tree.push(k, vec![1.0; 5 + world.rank()]));
        world.sum(2, tree)
    }));
    assert!(said.iter().all(|text| text.contains("ranks do different things")), "{said:?}");
    let said = refused(on_ranks(2, |world| {
        world.at_step(world.rank() as u64);
        world.any(true)
    }));
    assert!(said.iter().all(|text| text.contains("at step 0") && text.contains("at step 1")), "{said:?}");
}

#[test]
fn values_that_differ_are_named_with_both_ranks() {
    let said =
        refused(on_ranks(3, |world| world.same("the seed", if world.rank() == 2 { "8" } else { "7" })));
    for text in said {
        assert!(
            text.contains("ranks differ in the seed: rank 0 (host ") && text.contains(" has 7, rank 2 "),
            "{text}"
        );
    }
    let numbers = |odd: bool| {
        let part = |name: &str, hash: &str| (name.to_string(), hash.to_string());
        vec![part("layer.0", "aa"), part("layer.1", if odd { "bc" } else { "bb" }), part("layer.2", "cc")]
    };
    let said = refused(on_ranks(3, |world| {
        world.at_step(40);
        world.same_numbers(&numbers(world.rank() == 0))
    }));
    for text in said {
        assert!(text.starts_with("step 40, rank 0 (host ") && text.contains("layer.1"), "{text}");
    }
    assert!(on_ranks(3, |world| world.same_numbers(&numbers(true))).iter().all(Result::is_ok));
}

#[test]
fn a_silent_rank_is_named_within_the_limit() {
    let start = std::time::Instant::now();
    let all = on_ranks(3, |world| {
        world.limit(&DistributedSettings { timeout_s: 1, phase_timeout_s: 1, check_every: 1 });
        if world.rank() == 1 { Ok(()) } else { world.any(true).map(drop) }
    });
    assert!(all[1].is_ok());
    for one in [0, 2] {
        let text = all[one].as_ref().unwrap_err().to_string();
        assert!(
            text.contains("no word from rank 1 (host ") && text.contains("2 of 3 ranks answered"),
            "{text}"
        );
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    }
    assert!(start.elapsed().as_secs() < 20);
}

/// Files have a longer limit: who writes slowly is not dead.
#[test]
fn a_slow_first_rank_is_waited_for() {
    let all = on_ranks(2, |world| {
        world.limit(&DistributedSettings { timeout_s: 1, phase_timeout_s: 60, check_every: 1 });
        world.by_first(|| {
            std::thread::sleep(std::time::Duration::from_millis(1500));
            Ok(7)
        })
    });
    let all: Vec<Option<i32>> = all.into_iter().map(Result::unwrap).collect();
    assert_eq!(all, [Some(7), None]);
}
