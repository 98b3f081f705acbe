//! `serve`, asked over its socket; and `rank` as a filter.

use crate::cli::{engine, train, world};
use predicates::prelude::*;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A run of a few steps.
fn run(dir: &Path) -> PathBuf {
    run_of("llama_tied", dir)
}

/// The same of another base model.
fn run_of(model: &str, dir: &Path) -> PathBuf {
    let (data, out) = (world(dir), dir.join("run"));
    let fast =
        ["--steps", "3", "--set", "train.evaluate_before=false", "--set", "train.evaluate_after=false"];
    train(model, &data, &out, &fast).assert().success();
    out
}

/// A server, killed when it is dropped.
struct Server {
    process: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start(run: &Path, more: &[&str]) -> Self {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("gems-engine"));
        command.args(["serve", "--json", "--listen", "127.0.0.1:0", "--run"]).arg(run).args(more);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut told = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut told).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        let address = told["listening"].as_str().unwrap().strip_prefix("http://").unwrap().to_string();
        Self { process, address }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Status, head and body of the answer to a request.
    fn send(&self, request: &str, headers: &[&str], body: &str) -> (u16, String, String) {
        let mut stream = self.connect();
        let host = if headers.iter().any(|h| h.starts_with("Host:")) { "" } else { "Host: localhost\r\n" };
        let headers: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
        let length = body.len();
        let head = format!("{request} HTTP/1.1\r\n{host}{headers}Content-Length: {length}\r\n");
        // Refused in the middle of a long body: the answer is what counts.
        let _ = write!(stream, "{head}Connection: close\r\n\r\n{body}");
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text);
        let text = String::from_utf8(text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{request}: {text:?}"));
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_string(), body.to_string())
    }

    fn get(&self, path: &str) -> (u16, String) {
        let (status, _, body) = self.send(&format!("GET {path}"), &[], "");
        (status, body)
    }

    fn rank(&self, ask: &Value) -> (u16, Value) {
        let (status, _, body) =
            self.send("POST /rank", &["Content-Type: application/json"], &ask.to_string());
        (status, serde_json::from_str(&body).unwrap())
    }
}

/// What `rank` answers to the same.
fn ranked(run: &Path, args: &[&str]) -> Value {
    let done = engine().args(["rank", "--json", "--run"]).arg(run).args(args).assert().success();
    serde_json::from_slice(&done.get_output().stdout).unwrap()
}

fn ids(answer: &Value) -> Vec<&str> {
    answer["items"].as_array().unwrap().iter().map(|row| row["item"].as_str().unwrap()).collect()
}

/// Alone or among others a request has the same answer, to rounding.
fn same(a: &Value, b: &Value) -> bool {
    let score = |v: &Value, i: usize| v["items"][i]["log_likelihood"].as_f64().unwrap();
    ids(a) == ids(b)
        && a["task"] == b["task"]
        && (0..ids(a).len()).all(|i| (score(a, i) - score(b, i)).abs() < 1e-4)
}

#[test]
fn it_answers_as_rank_does() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path());
    let server = Server::start(&run, &["--top", "4"]);
    let (status, answer) = server.rank(&json!({"history": ["i1", "i2"], "query": "red desk"}));
    assert_eq!(status, 200, "{answer}");
    assert!(same(&answer, &ranked(&run, &["--history", "i1,i2", "--query", "red desk", "--top", "4"])));
    // Many at a time, each with its own wishes: none gets another's answer.
    let ask = |k: usize| json!({"history": [format!("i{}", k % 12)], "top": 1 + k % 5, "exclude_history": k.is_multiple_of(2)});
    let server = &server;
    let all: Vec<Value> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..40).map(|k| scope.spawn(move || server.rank(&ask(k)))).collect();
        asked
            .into_iter()
            .map(|a| a.join().unwrap())
            .map(|(status, a)| (status == 200).then_some(a).unwrap())
            .collect()
    });
    for (k, answered) in all.iter().enumerate().take(12) {
        let (history, top) = (format!("i{}", k % 12), (1 + k % 5).to_string());
        let mut args = vec!["--history", &history, "--top", &top];
        args.extend(k.is_multiple_of(2).then_some("--exclude-history"));
        let alone = ranked(&run, &args);
        assert!(same(answered, &alone), "{k}: {answered} {alone}");
        assert!(k % 2 == 1 || !ids(&alone).contains(&&*history));
    }
    let (status, answer) =
        server.rank(&json!({"history": ["i1"], "among": ["i9", "i3", "i4"], "exclude": ["i4"]}));
    assert_eq!((status, ids(&answer).len()), (200, 2), "{answer}");
    assert!(ids(&answer).contains(&"i9") && ids(&answer).contains(&"i3"));

    // Found by text and by id; what a page needs to know; what is counted.
    let (_, found) = server.get("/items?text=BLUE+desk");
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(ids(&found), ["i1", "i5", "i9"]);
    let about: Value = serde_json::from_str(&server.get("/about").1).unwrap();
    assert_eq!(about["tasks"].as_array().unwrap().len(), 2);
    assert!(server.get("/health").1.contains("ready"));
    let metrics = server.get("/metrics").1;
    assert!(metrics.contains("gems_rank_requests_total{status=\"200\"} 42\n"), "{metrics}");
    assert!(metrics.contains("gems_waiting_requests 0\n"), "{metrics}");
    let (_, head, page) = server.send("GET /", &[], "");
    assert!(head.contains("default-src 'none'") && page.contains("/page.js"), "{head}");
}

#[test]
fn it_serves_a_base_in_codes() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_of("quantised_nf4", dir.path());
    let server = Server::start(&run, &["--top", "4"]);
    let (status, answer) = server.rank(&json!({"history": ["i1", "i2"]}));
    assert_eq!(status, 200, "{answer}");
    assert!(same(&answer, &ranked(&run, &["--history", "i1,i2", "--top", "4"])));
}

#[test]
fn what_cannot_be_answered_says_why_and_the_server_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path());
    let server = Server::start(&run, &[]);
    let json_type = "Content-Type: application/json";
    let large = format!("{{\"query\": \"{}\"}}", "x".repeat(2 << 20));
    for (request, headers, body, status, said) in [
        ("POST /rank", vec![json_type], r#"{"history": ["i1", "j2"]}"#, 400, "there is no item"),
        ("POST /rank", vec![json_type], r#"{"histroy": ["i1"]}"#, 400, "did you mean `history`"),
        ("POST /rank", vec![json_type], r#"{"history": ["i1"], "top": 0}"#, 400, "at least 1"),
        ("POST /rank", vec![json_type], r#"{"history": ["i1"], "top": 1e300}"#, 400, "at least 1"),
        ("POST /rank", vec![json_type], r#"{"history": ["i1"], "among": []}"#, 400, "no item at all"),
        ("POST /rank", vec![json_type], r#"{"history": ["i1"], "exclude": "i2"}"#, 400, "a list of item ids"),
        ("POST /rank", vec![json_type], r#"{"history": "i1"}"#, 400, "a list of item ids"),
        ("POST /rank", vec![json_type], r#"{"task": "serch", "query": "x"}"#, 400, "did you mean"),
        ("POST /rank", vec![json_type], r#"{"query": 7}"#, 400, "a string"),
        ("POST /rank", vec![json_type], "[1]", 400, "no object"),
        ("POST /rank", vec![json_type], "{\"a\":", 400, "not valid JSON"),
        ("POST /rank", vec![json_type], "", 400, "not valid JSON"),
        ("POST /rank", vec![json_type], &large, 413, "longer than"),
        ("POST /rank", vec![], "{}", 415, "Content-Type"),
        ("POST /rank", vec!["Content-Type: text/plain"], "{}", 415, "Content-Type"),
        ("GET /rank", vec![], "", 405, "POST"),
        ("DELETE /metrics", vec![], "", 405, "GET"),
        ("GET /../../etc/passwd", vec![], "", 404, "there is no"),
        // A page elsewhere whose name leads here.
        ("GET /", vec!["Host: example.org"], "", 421, "localhost only"),
        ("POST /rank", vec![json_type, "Host: 10.0.0.1:80"], r#"{"history": ["i1"]}"#, 421, "localhost only"),
    ] {
        let (got, _, text) = server.send(request, &headers, body);
        let why: Value = serde_json::from_str(&text).unwrap();
        let why = why["error"].as_str().unwrap();
        assert!(
            got == status && why.contains(said) && !why.contains('\n'),
            "{request} {body:.60}: {got} {why}"
        );
    }
    // What is no HTTP, and who says nothing, keeps nobody else from being answered.
    let mut silent = server.connect();
    silent.write_all(b"POST /rank HTTP/1.1\r\nHost: loc").unwrap();
    let mut noise = server.connect();
    noise.write_all(&[0xff; 4096]).unwrap();
    assert_eq!(server.rank(&json!({"history": ["i1"]})).0, 200);

    let taken = ["serve", "--listen", &server.address, "--run"];
    engine()
        .args(taken)
        .arg(&run)
        .assert()
        .code(2)
        .stderr(predicate::str::contains("another program listens"));
    let nowhere = ["serve", "--listen", "127.0.0.1:0", "--run"];
    engine().args(nowhere).arg(dir.path()).assert().code(2).stderr(predicate::str::contains("config.toml"));
    let far = ["serve", "--listen", "192.0.2.1:8080", "--run"];
    engine().args(far).arg(&run).assert().code(2).stderr(predicate::str::contains("no such address"));
}

#[test]
fn a_flood_is_refused_and_a_stop_finishes_what_is_on_its_way() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path());
    let mut server = Server::start(&run, &["--queue", "1"]);
    let ask = json!({"history": ["i1", "i2"], "query": "red desk"});
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..64).map(|_| scope.spawn(|| server.rank(&ask).0)).collect();
        asked.into_iter().map(|a| a.join().unwrap()).collect()
    });
    assert!(statuses.iter().all(|s| [200, 503].contains(s)) && statuses.contains(&200), "{statuses:?}");
    assert_eq!(server.rank(&ask).0, 200);

    // Half a request is on its way when the signal comes.
    let (mut stream, body) = (server.connect(), ask.to_string());
    let head = "POST /rank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    write!(stream, "{head}Content-Length: {}\r\n\r\n{}", body.len(), &body[..5]).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let pid = server.process.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    std::thread::sleep(Duration::from_millis(300));
    stream.write_all(&body.as_bytes()[5..]).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(server.process.wait().unwrap().code(), Some(0));
}

#[test]
fn rank_is_a_filter_that_answers_as_it_reads() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path());
    fs::write(dir.path().join("few"), "i3\n\n i4 \ni9").unwrap();
    let mut filter = Command::new(assert_cmd::cargo::cargo_bin("gems-engine"))
        .args(["rank", "--batch", "-", "--top", "2", "--among"])
        .arg(dir.path().join("few"))
        .arg("--run")
        .arg(&run)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = filter.stdin.take().unwrap();
    let mut stdout = BufReader::new(filter.stdout.take().unwrap()).lines();
    let mut ask = |line: &str| -> Value {
        writeln!(stdin, "{line}").unwrap();
        // It comes before another line is written.
        serde_json::from_str(&stdout.next().unwrap().unwrap()).unwrap()
    };
    let answer = ask(r#"{"history": ["i1"]}"#);
    assert!(
        ids(&answer).len() == 2 && ids(&answer).iter().all(|id| ["i3", "i4", "i9"].contains(id)),
        "{answer}"
    );
    assert_eq!(ids(&ask(r#"{"history": ["i3"], "exclude_history": true, "top": 9}"#)).len(), 2);
    assert!(ask("no JSON")["error"].as_str().unwrap().contains("standard input line 3"));
    assert_eq!(ids(&ask(r#"{"history": ["i1"], "among": ["i7"]}"#)), ["i7"]);
    drop(stdin);
    let done = filter.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stderr).contains("1 of 4 requests could not be answered"));

    let bad = |args: &[&str], said: &str| {
        let mut command = engine();
        command.args(["rank", "--history", "i1", "--run"]).arg(&run).args(args);
        command.assert().failure().stderr(predicate::str::contains(said));
    };
    fs::write(dir.path().join("empty"), "\n").unwrap();
    fs::write(dir.path().join("wrong"), "i3\nj4\n").unwrap();
    bad(&["--among", dir.path().join("empty").to_str().unwrap()], "no item at all");
    bad(&["--among", dir.path().join("wrong").to_str().unwrap()], "there is no item \"j4\"");
    bad(&["--among", "nowhere"], "no such file");
    bad(&["--exclude", "j9"], "there is no item \"j9\"");
}
