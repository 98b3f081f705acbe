//! Which cells there are and what each of them is made with.

use gems_engine::config::Layer;
use gems_engine::data::{Catalogue, Dataset, Record, Sampler, Split, StepSize};
use gems_engine::race::{Cell, Common, Files, Grid, Made, Methods, rows_by_task};
use std::collections::BTreeMap;

const THREE: &str = r#"
[shared.null_space]
side = "none"

[[method]]
name = "odd"
rates = [2, 1]
controls = ["plain"]
settings.null_space = { step_factors = true }

[[method]]
name = "plain"
rates = [1]

[[method]]
name = "left-out"
rates = [1]
"#;

fn common() -> Common {
    Common {
        layers: vec!["seed = 9\ntrain.lr = 0.01\nnull_space.side = \"input\"".parse().unwrap()],
        batch: BTreeMap::from([("rec".into(), 5), ("search".into(), 3)]),
        tasks: vec!["rec".into(), "search".into()],
    }
}

#[test]
fn a_grid_is_method_by_rate_by_seed_and_each_task_alone_by_plain() {
    let methods = Methods::parse(THREE, "here").unwrap();
    let chosen = methods.chosen(&["odd".into()]).unwrap();
    let mut grid = Grid::new(chosen, 0.003, &[], &[4, 2], 30).unwrap();
    grid.alone = vec!["rec".into(), "se/arch".into()];
    let tasks = ["rec".to_string(), "se/arch".to_string()];
    let names: Vec<String> = grid.cells().iter().map(|cell| cell.name(&tasks)).collect();
    let of_seed = |seed: u64| {
        [
            "odd.lr-0.003",
            "odd.lr-0.006",
            "plain.lr-0.003",
            "plain.only-1-rec.lr-0.003",
            "plain.only-2-search.lr-0.003",
        ]
        .map(|name| format!("{name}.seed-{seed}"))
    };
    assert_eq!(names, [&["base".to_string()][..], &of_seed(4), &of_seed(2)].concat());
    let given = Grid::new(methods.all, 1.0, &[0.3, 0.1], &[0], 30).unwrap();
    assert_eq!(given.rates, [[0.1, 0.3], [0.1, 0.3], [0.1, 0.3]]);
    // All of a race takes the same steps.
    assert!(given.cells().iter().skip(1).all(|cell| cell.steps == 30));
    for (rates, seeds, steps) in [
        (&[0.0][..], &[1][..], 1),
        (&[0.1, 0.1], &[1], 1),
        (&[0.1], &[1, 1], 1),
        (&[0.1], &[], 1),
        (&[0.1], &[1], 0),
    ] {
        assert!(
            Grid::new(given.methods.clone(), 1.0, rates, seeds, steps).is_err(),
            "{rates:?} {seeds:?} {steps}"
        );
    }
}

#[test]
fn cells_differ_in_what_they_are_named_for_and_nothing_else() {
    let methods = Methods::parse(THREE, "here").unwrap();
    let made = |cell: &Cell| Made::of(&common().settings(&methods, cell).unwrap(), &Files::new());
    let cell = Cell { method: "plain".into(), alone: None, lr: 0.02, seed: 1, steps: 30 };
    let plain = made(&cell);
    for (key, want) in [
        ("seed", "1"),
        ("train.lr", "0.02"),
        ("train.steps", "30"),
        ("train.validate_every", "30"),
        ("train.export", "false"),
        ("train.evaluate_before", "false"),
        ("null_space.side", "\"none\""),
        ("train.batch_per_task.rec", "5"),
    ] {
        assert_eq!(plain.settings[key].to_string(), want, "{key}");
    }
    let differs = |other: Cell| plain.differences(&made(&other));
    assert!(differs(cell.clone()).is_empty());
    assert_eq!(differs(Cell { seed: 2, ..cell.clone() }), ["seed was 1, is 2"]);
    assert_eq!(
        differs(Cell { method: "odd".into(), ..cell.clone() }),
        ["null_space.step_factors was false, is true"]
    );
    // A task alone: the other's rows are gone, and everything else is the same.
    assert_eq!(
        differs(Cell { alone: Some("rec".into()), ..cell }),
        ["train.batch_per_task.search was 3, is not there"]
    );
    let files =
        |hash: &str| Made { files: Files::from([("data/test.jsonl".into(), hash.into())]), ..plain.clone() };
    assert_eq!(files("a").differences(&files("b")), ["data/test.jsonl has changed"]);
    assert_eq!(files("a").differences(&plain), ["data/test.jsonl is gone"]);
    let older = Made { version: "0.0.1".into(), ..plain.clone() };
    assert!(older.differences(&plain)[0].starts_with("made by version 0.0.1"));
}

/// `n` records of every task, mixed.
fn records(n: usize) -> Vec<Record> {
    let one = |k: usize| Record {
        task: u32::from(k.is_multiple_of(3)),
        target: vec![0].into(),
        ..Record::default()
    };
    (0..n).map(one).collect()
}

#[test]
fn a_task_alone_sees_the_same_rows_in_the_same_steps() {
    let (records, tasks) = (records(60), ["rec".to_string(), "search".to_string()]);
    let sampler = |rows: &[(&str, usize)]| {
        let rows = rows.iter().map(|(task, n)| (task.to_string(), *n)).collect();
        Sampler::new(&records, &tasks, &StepSize::PerTask(rows), 7).unwrap()
    };
    let (together, rec, search) =
        (sampler(&[("rec", 5), ("search", 3)]), sampler(&[("rec", 5)]), sampler(&[("search", 3)]));
    for step in 0..40 {
        assert_eq!(together.batch_at(step), [rec.batch_at(step), search.batch_at(step)].concat(), "{step}");
    }
}

#[test]
fn rows_are_shared_out_by_examples() {
    let data = |records: Vec<Record>| Dataset {
        items: Catalogue::default(),
        tasks: vec!["rec".into(), "search".into(), "empty".into()],
        train: Split { records, ..Split::default() },
        ..Dataset::default()
    };
    let rows = |batch: usize, n: usize| {
        rows_by_task(&data(records(n)), &BTreeMap::new(), batch).into_values().collect::<Vec<_>>()
    };
    // 40 of 60 are of rec: of 8 rows 5.33 and 2.67, of 64 rows 42.67 and 21.33. The larger remainder gets the odd row.
    assert_eq!(rows(8, 60), [5, 3]);
    assert_eq!(rows(64, 60), [43, 21]);
    assert_eq!(rows(1, 60), [1, 1], "every task at least one");
    let given = BTreeMap::from([("rec".to_string(), 40)]);
    assert_eq!(rows_by_task(&data(records(60)), &given, 8), given);
}

#[test]
fn methods_are_checked_before_anything_runs() {
    let built_in = Methods::read(None).unwrap();
    assert!(built_in.all.iter().any(|m| m.name == "plain"));
    for method in &built_in.all {
        for lr in &method.rates {
            let cell = Cell { method: method.name.clone(), alone: None, lr: *lr, seed: 0, steps: 9 };
            common().settings(&built_in, &cell).unwrap();
        }
    }
    let refused = |text: &str| Methods::parse(text, "here").unwrap_err().to_string();
    for (text, want) in [
        ("[[method]]\nname = \"a\"\nrates = [1]", "no method is called `plain`"),
        ("[[method]]\nname = \"plain\"\nrates = []", "no learning rate"),
        ("[[method]]\nname = \"plain\"\nrates = [1, -1]", "learning rate -1"),
        (
            "[[method]]\nname = \"plain\"\nrates = [1]\n[[method]]\nname = \"plain\"\nrates = [1]",
            "two methods",
        ),
        ("[[method]]\nname = \"plain\"\nrates = [1]\ncontrols = [\"x\"]", "its control `x`"),
        ("[[method]]\nname = \"plain\"\nrates = [1]\nsettings.seed = 3", "methods cannot set seed"),
        ("[[method]]\nname = \"plain\"\nrates = [1]\nsettings.null_space.tokens = 3", "one basis"),
        ("[[method]]\nname = \"a/b\"\nrates = [1]", "no method is called"),
        ("[[method]]\nname = \"plain\"\nrate = [1]", "unknown field"),
    ] {
        let said = refused(text);
        assert!(said.starts_with("here: ") && said.contains(want), "{said}");
    }
    let unknown = built_in.chosen(&["metrik".into()]).unwrap_err().to_string();
    assert!(unknown.contains("did you mean") && unknown.contains("metric"), "{unknown}");
    let set = |text: &str| built_in.check_common(&[Layer::assignment(text).unwrap()]);
    for text in ["seed=1", "train.steps=9", "train.export=true"] {
        assert!(set(text).unwrap_err().to_string().contains("a race decides"), "{text}");
    }
    let differ = set("null_space.side=none").unwrap_err().to_string();
    assert!(
        differ.contains("what methods of this race differ in") && differ.contains("--methods-from"),
        "{differ}"
    );
    for text in ["train.lr=0.1", "null_space.tokens=99", "gems.rank=4", "null_space.value=0.9"] {
        set(text).unwrap();
    }
    // A method's own settings must be settings, and go together.
    let wrong =
        Methods::parse("[[method]]\nname = \"plain\"\nrates = [1]\nsettings.gems.rang = 3", "here").unwrap();
    let cell = Cell { method: "plain".into(), alone: None, lr: 0.1, seed: 0, steps: 9 };
    let said = common().settings(&wrong, &cell).unwrap_err().to_string();
    assert!(said.contains("method `plain`") && said.contains("gems.rank"), "{said}");
}
