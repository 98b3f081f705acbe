//! Phases and layers by name in the timelines of NVIDIA's tools.

use assert_cmd::Command;

/// A tool's library, by NVTX's headers: it hears where ranges begin and end.
const TOOL: &str = r#"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
typedef void (*function)(void);
struct callbacks { size_t bytes; int (*table)(int module, function*** table, unsigned* size); };
static FILE* heard;
static int push(const char* name) { fprintf(heard, "push %s\n", name); return 0; }
static int pop(void) { fprintf(heard, "pop\n"); return 0; }
int InitializeInjectionNvtx2(const void* (*exported)(uint32_t)) {
  const struct callbacks* callbacks = exported(1);
  function** table;
  unsigned size;
  if (exported(99) || callbacks->bytes < sizeof *callbacks || callbacks->table(7, &table, &size)) return 0;
  if (!callbacks->table(1, &table, &size) || size != 16) return 0;
  heard = fopen(getenv("HEARD"), "w");
  *table[9] = (function)push;
  *table[11] = (function)pop;
  return heard != NULL;
}
"#;

#[test]
fn ranges_reach_the_tool_that_watches() {
    let dir = tempfile::tempdir().unwrap();
    let (source, library, heard) =
        (dir.path().join("tool.c"), dir.path().join("libtool.so"), dir.path().join("heard"));
    std::fs::write(&source, TOOL).unwrap();
    Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).assert().success();
    let profile = || {
        let mut command = Command::cargo_bin("gems-engine").unwrap();
        command.args([
            "profile",
            "--device",
            "cpu",
            "--steps",
            "1",
            "--warmup",
            "0",
            "--no-refresh",
            "--json",
        ]);
        command.env("HEARD", &heard);
        command
    };
    profile().env("NVTX_INJECTION64_PATH", &library).assert().success();
    let heard = std::fs::read_to_string(&heard).unwrap();
    let mut open = Vec::new();
    let mut places = Vec::new();
    for line in heard.lines() {
        match line.strip_prefix("push ") {
            Some(name) => open.push(name),
            None => drop(open.pop().expect("a range that began")),
        }
        places.push(open.join("/"));
    }
    assert!(open.is_empty(), "{open:?} did not end");
    assert!(places.iter().any(|p| p.contains("step/forward/") && p.ends_with(" 0")), "{heard}");
    // What is no such library is left alone.
    profile().env("NVTX_INJECTION64_PATH", "/nonexistent/libtool.so").assert().success();
}
