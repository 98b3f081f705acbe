//! The scripts for a GPU machine, up to the device.

use assert_cmd::Command;

/// A script of the GPU machine, run here as far as the device: its table, and what it says at the end.
fn script(name: &str, args: &[&str]) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let root = env!("CARGO_MANIFEST_DIR");
    let said = Command::new("bash")
        .arg(format!("{root}/scripts/{name}"))
        .arg("--out")
        .arg(&out)
        .args(args)
        .env("GEMS_ENGINE", assert_cmd::cargo::cargo_bin("gems-engine"))
        .env("GEMS_SUITE", std::env::current_exe().unwrap())
        .env("GEMS_OPS", "/no/bench/program")
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.status.success(), "{words}{}", String::from_utf8_lossy(&said.stderr));
    (std::fs::read_to_string(out.join("table.tsv")).unwrap(), words)
}

#[test]
#[ignore = "slow: two minutes; `just test-all`"]
fn gpu_check_runs_up_to_the_device() {
    let (table, words) = script("gpu-check.sh", &["--device", "simt"]);
    for row in
        ["train on simt", "two runs, equal bits", "losses of simt and CPU", "a step of t5-base, null device"]
    {
        assert!(table.lines().any(|l| l.starts_with(&format!("{row}\tPASS"))), "{row}:\n{words}");
    }
    assert!(table.contains("compute-sanitizer\tSKIP"), "{words}");
    assert!(words.contains("no GPU was used") && words.contains("Not checked"), "{words}");
}

#[test]
fn gpu_bench_runs_up_to_the_device() {
    let (table, words) =
        script("gpu-bench.sh", &["--device", "null", "--shapes", "t5-base", "--tokens", "1024"]);
    assert!(
        table.lines().any(|l| l.starts_with("t5-base gems engine\tPASS") && l.contains("not measured")),
        "{words}"
    );
    assert!(table.contains("PyTorch peers\tSKIP") && table.contains("operations\tSKIP"), "{words}");
    assert!(words.contains("nothing was measured"), "{words}");
}
