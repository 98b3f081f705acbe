//! What is named and is not there, and what cannot be meant, is refused before anything is written, with a way out.

use super::write;
use crate::cli::engine;
use predicates::prelude::*;
use serde_json::Value;
use std::path::Path;

/// `prepare events log.csv` in `dir`, which filters nothing.
fn prepare_log(dir: &Path, flags: &[&str]) -> assert_cmd::Command {
    let mut command = engine();
    let log = ["prepare", "events", "log.csv", "--min-user", "1", "--min-item", "1", "--out", "out"];
    command.current_dir(dir).args(log).args(flags);
    command
}

/// Runs `prepare events` with flags over a log of four searches and recommendations.
#[track_caller]
fn refused(code: i32, flags: &[&str], said: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = (0..8)
        .map(|t| format!("u,i{t},{t},{},3,click\n", if t % 2 == 0 { "red shoe" } else { "" }))
        .collect();
    write(&dir.path().join("log.csv"), format!("user,item,timestamp,typed,rating,kind\n{rows}"));
    write(&dir.path().join("items.csv"), "item,title,brand\ni1,one,x\ni2,two,y\n");
    write(&dir.path().join("queries.csv"), "query_id,query\nq1,red\n");
    write(&dir.path().join("general.txt"), "a text\n");
    let flags = [&["--columns", "query=typed"], flags].concat();
    let mut run = prepare_log(dir.path(), &flags)
        .assert()
        .code(code)
        .stderr(predicate::str::contains("panicked").not());
    for part in said {
        run = run.stderr(predicate::str::contains(part.to_string()));
    }
    assert_eq!(code == 0, dir.path().join("out").exists(), "{flags:?}");
}

#[test]
fn what_is_named_must_be_there() {
    let cases: &[(i32, &[&str], &[&str])] = &[
        (
            1,
            &["--columns", "label=raiting"],
            &["log.csv: no column `raiting`", "did you mean `rating`?", "user, item"],
        ),
        (1, &["--columns", "task=knid"], &["no column `knid`", "did you mean `kind`?"]),
        (1, &["--columns", "request=session"], &["no column `session`", "there are: user"]),
        (2, &["--columns", "usr=user"], &["--columns: no role `usr`", "did you mean `user`?"]),
        (2, &["--columns", "user"], &["`user` is not ROLE=NAME"]),
        (2, &["--columns", "user="], &["`user` has no name"]),
        (2, &["--columns", "user=item"], &["column `item` cannot be both"]),
        (
            1,
            &["--items", "items.csv", "--item-columns", "text=titel"],
            &["items.csv: no column `titel`", "did you mean `title`?"],
        ),
        (
            1,
            &["--items", "items.csv", "--item-columns", "text=name"],
            &["items.csv: no column `name`", "item, title, brand", "--item-columns"],
        ),
        (2, &["--item-columns", "txt=title"], &["--item-columns: no role `txt`", "did you mean `text`?"]),
        (1, &["--items", "item.csv"], &["item.csv: there is no such file", "did you mean `./items.csv`?"]),
        (1, &["--general", "generla.txt"], &["generla.txt: there is no such file", "general.txt"]),
        (
            2,
            &["--negatives", "serach=uniform:5"],
            &["the log has no task `serach`", "did you mean `search`?", "rec"],
        ),
        (2, &["--negatives", "unifrom:5"], &["unknown kind `unifrom`", "did you mean `uniform`?"]),
        (
            2,
            &["--columns", "label=kind", "--wanted", "clik"],
            &["no label is `clik`", "did you mean `click`?"],
        ),
        (2, &["--columns", "query_id=typed"], &["no table of queries", "--queries"]),
        (2, &["--encoding", "utf-9"], &["no encoding `utf-9`"]),
        (2, &["--min-label", "3"], &["there is no column of labels", "--columns label=NAME"]),
        (2, &["--align", "title-to-item"], &["no texts of the items", "--items"]),
        (2, &["--negatives", "bm25:5"], &["texts of the items", "--items"]),
    ];
    for (code, flags, said) in cases {
        refused(*code, flags, said);
    }
    // What is there in one of the files is enough, and what was passed over is said.
    refused(0, &["--columns", "label=rating", "--min-label", "3", "--items", "items.csv"], &[]);
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let cases: &[(&[&str], &[&str])] = &[
        (
            &["--row-order", "--columns", "timestamp=timestamp"],
            &["--row-order", "either the rows' order or a column"],
        ),
        (&["--row-order", "--time-unit", "ms"], &["there are no times"]),
        (&["--valid-from", "5"], &["--valid-from", "only a split by time"]),
        (&["--valid-share", "0.2"], &["--valid-share", "takes no shares"]),
        (&["--split", "time", "--valid-share", "0.2", "--valid-from", "5"], &["--valid-share, --valid-from"]),
        (&["--split", "time", "--valid-from", "6", "--test-from", "5"], &["--valid-from", "after the test"]),
        (&["--split", "time", "--valid-from", "soon"], &["--valid-from", "`soon` is no time"]),
        (&["--split", "time", "--valid-from", "2024-02-30"], &["there is no such day"]),
        (
            &["--split", "time", "--valid-from", "2024-02-03"],
            &["looks like seconds since 1970, the log's times like a count"],
        ),
        (
            &["--split", "users", "--valid-share", "0.5", "--test-share", "0.5"],
            &["leave nothing to train on"],
        ),
        (&["--split", "users", "--valid-share", "-0.5"], &["--valid-share"]),
        (&["--split", "given"], &["no test of its own"]),
        (&["--history", "log"], &["this log gives no histories", "history=NAME"]),
        (&["--negatives", "uniform:5,uniform:6"], &["names a kind twice"]),
        (&["--negatives", "uniform:0"], &["1 to 1048576"]),
        (&["--negatives", "none,uniform:5"], &["`none` is not KIND:N"]),
        (&["--min-history", "9", "--max-history", "8"], &["--min-history, --max-history"]),
        (&["--max-history", "0"], &["--max-history"]),
        (&["--max-items", "0"], &["--max-items"]),
        (&["--text-chars", "0"], &["--text-chars"]),
        (&["--train-sample", "0"], &["--train-sample"]),
        (&["--train-sample", "nan"], &["--train-sample"]),
        (&["--min-label", "inf"], &["--min-label"]),
        (&["--min-user", "0"], &["--min-user"]),
        (&["--separator", "a"], &["`a` cannot separate fields"]),
        (&["--separator", "\\xgg"], &["is no byte"]),
        (&["--quotes", "off", "--escapes"], &["--escapes"]),
        (&["--columns", "user=item"], &["column `item` cannot be both user and item"]),
        (&["--columns", "user=1"], &["some columns are named by number, and `item` is not"]),
        (&["--header", "off"], &["without a header there is no column `user`"]),
        (
            &["--min-label", "3", "--wanted", "click", "--columns", "label=kind"],
            &["labels are numbers or words"],
        ),
    ];
    for (flags, said) in cases {
        refused(2, flags, said);
    }
}

#[test]
fn what_is_said_of_text_needs_text() {
    let dir = tempfile::tempdir().unwrap();
    let table = super::dialects::fixture("types.parquet");
    write(&dir.path().join("log.jsonl"), "{\"user\": 1, \"item\": 2, \"timestamp\": 3}\n");
    let run = |log: &Path, flags: &[&str]| -> String {
        let mut command = engine();
        command.current_dir(dir.path()).args(["prepare", "events", "--out", "out"]).arg(log);
        let columns = if log == table { "user=who,item=n,timestamp=date32" } else { "user=user" };
        let done = command.args(["--columns", columns]).args(flags).assert().code(2);
        String::from_utf8_lossy(&done.get_output().stderr).into_owned()
    };
    for flags in [&["--separator", ";"][..], &["--header", "on"], &["--quotes", "off"], &["--escapes"]] {
        for log in [table.as_path(), Path::new("log.jsonl")] {
            let text = run(log, flags);
            assert!(text.contains(&format!("{}: none of the files is delimited text", flags[0])), "{text}");
        }
    }
    let text = run(&table, &["--encoding", "gbk"]);
    assert!(text.contains("--encoding: none of the files is text"), "{text}");
}

#[test]
fn advice_fits_the_cause() {
    let dir = tempfile::tempdir().unwrap();
    let run = |text: &str, flags: &[&str]| -> String {
        write(&dir.path().join("log.csv"), text);
        let done = prepare_log(dir.path(), flags).assert().failure();
        String::from_utf8_lossy(&done.get_output().stderr).into_owned()
    };
    let constant: String = (0..9).map(|t| format!("u,i{t},1714566600\n")).collect();
    let constant = format!("user,item,timestamp\n{constant}");
    let text = run(&constant, &[]);
    assert!(
        text.contains("all events of a user have the same time") && text.contains("--row-order"),
        "{text}"
    );
    assert!(!text.contains("leave-one-out needs"), "{text}");
    let text = run("user,item,timestamp\nu,a,1\nu,b,2\nu,c,3\n", &["--split", "time", "--test-from", "9"]);
    assert!(text.contains("no valid rows are left") && text.contains("times run from 1 to 3"), "{text}");
    assert!(!text.contains("leave-one-out"), "{text}");
    let text = run("user,item,timestamp\nu,a,1\nu,b,2\n", &[]);
    assert!(text.contains("leave-one-out needs users with three requests"), "{text}");
    // No header, said by no flag.
    let text = run("1,10,5\n1,11,6\n", &[]);
    assert!(
        text.contains("no column `user`; there are: 1, 10, 5") && text.contains("named by number"),
        "{text}"
    );
    let named = ["--columns", "user=1,item=2,timestamp=3"];
    let text = run("user,item,timestamp\n1,10,5\n1,11,6\n1,12,7\n", &named);
    assert!(text.contains("the first line looks like a header: user, item, timestamp"), "{text}");
    let named = ["--columns", "user=1,item=2", "--row-order"];
    let text = run("userId,movie\nu1,m1\nu1,m2\nu1,m3\n", &named);
    assert!(text.contains("the first line looks like a header: userId, movie"), "{text}");
    // In a text between tabs quotes are characters.
    let text = run("\"user\"\t\"item\"\t\"timestamp\"\n\"u\"\t\"a\"\t1\n", &[]);
    assert!(text.contains("no column `user`") && text.contains("give --quotes on"), "{text}");
    // Rows grouped by user have no time that users share.
    let grouped: String = (0..12).map(|t| format!("u{},i{t}\n", t / 4)).collect();
    let grouped = format!("user,item\n{grouped}");
    let text = run(&grouped, &["--row-order", "--split", "time"]);
    assert!(text.contains("grouped by user"), "{text}");
    // Labels that are words.
    let words: String = (0..6).map(|t| format!("u,i{t},{t},click\n")).collect();
    let text = run(&format!("user,item,timestamp,label\n{words}"), &[]);
    assert!(
        text.contains("label: the string \"click\" instead of a finite number") && text.contains("--wanted"),
        "{text}"
    );
    // A label that only later rows have would make all before it wanted.
    let row =
        |t: i64, label: &str| format!("{{\"user\": \"u\", \"item\": \"i{t}\", \"timestamp\": {t}{label}}}\n");
    let late: String = (0..300).map(|t| row(t, if t < 250 { "" } else { ", \"label\": 0" })).collect();
    write(&dir.path().join("log.jsonl"), late);
    let mut command = engine();
    let done = command
        .current_dir(dir.path())
        .args(["prepare", "events", "log.jsonl", "--out", "out"])
        .assert()
        .failure();
    let text = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
    assert!(text.contains("line 251: label: first found here"), "{text}");
}

#[test]
fn rows_without_a_label_are_left_out_where_others_have_one() {
    let dir = tempfile::tempdir().unwrap();
    let labels = ["5", "", "nan", "NaN", "None", "5", "5", "5", "1", "5"];
    let rows: String = labels.iter().enumerate().map(|(t, l)| format!("u,i{t},{t},{l}\n")).collect();
    write(&dir.path().join("log.csv"), format!("user,item,timestamp,rating\n{rows}"));
    let mut command = engine();
    command.current_dir(dir.path()).args([
        "prepare",
        "events",
        "log.csv",
        "--columns",
        "label=rating",
        "--json",
    ]);
    command.args([
        "--min-label",
        "4",
        "--min-user",
        "1",
        "--min-item",
        "1",
        "--out",
        "out",
        "--negatives",
        "none",
    ]);
    let done = command.assert().success();
    let card: Value = serde_json::from_slice(&done.get_output().stdout).unwrap();
    assert_eq!(card["card"]["read"]["dropped"]["without a label"], 4);
    assert_eq!(card["card"]["items"], 5, "one of the six that are left was not wanted");
    // Without the flag the report says what was passed over.
    let mut command = engine();
    command.current_dir(dir.path()).args([
        "prepare",
        "events",
        "log.csv",
        "--min-user",
        "1",
        "--min-item",
        "1",
    ]);
    command
        .args(["--out", "all"])
        .assert()
        .success()
        .stdout(predicate::str::contains("--columns label=rating"));
}

#[test]
fn a_reader_that_closes_early_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let data = crate::cli::world(dir.path());
    let binary = assert_cmd::cargo::cargo_bin("gems-engine");
    let mut child = std::process::Command::new(binary)
        .args(["prepare", "check"])
        .arg(&data)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&done.stderr), "");
    assert!(done.status.success());
}
