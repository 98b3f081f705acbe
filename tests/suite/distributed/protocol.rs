//! Shared results, and errors that all ranks hear.

use super::{limits, on_ranks, refused, summed};
use gems_engine::distributed::World;
use gems_engine::error::{Error, Kind};

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
        |world| summed(world, 4, &[1.0]).map(drop),
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
    let said = refused(on_ranks(2, |world| summed(world, 2, &vec![1.0; 5 + world.rank()])));
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
        world.follow(&limits(1, 1));
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
        world.follow(&limits(1, 60));
        world.by_first(|| {
            std::thread::sleep(std::time::Duration::from_millis(1500));
            Ok(7)
        })
    });
    let all: Vec<Option<i32>> = all.into_iter().map(Result::unwrap).collect();
    assert_eq!(all, [Some(7), None]);
}
