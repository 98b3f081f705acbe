//! Compiles the kernels: for GPUs when a CUDA compiler is at hand, and with the feature `simt` for the host SIMT machine.
//!
//! `GEMS_CUDA=auto|require|off`: use nvcc if found (default), fail without it, or never look for it.
//! `GEMS_CUDA_ARCHS=80,90a,...`: the GPU architectures to compile for.
//! nvcc is looked for in `$NVCC`, `$CUDA_HOME` and `$CUDA_PATH`, `.cuda/` of this directory, `PATH`.
//!
//! An object is compiled again only when its command, its source or a header has changed.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Generations since Ampere; PTX of the first serves whatever is not listed.
const ARCHITECTURES: &str = "80,86,89,90a,100,120";
const PTX: &str = "80";

/// One compiler call and what it reads.
struct Job {
    command: Command,
    inputs: Vec<PathBuf>,
    output: PathBuf,
}

fn main() {
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "GEMS_CUDA", "GEMS_CUDA_ARCHS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    // Only where it is: cargo takes a file that is not there for one that changed. `scripts/cuda-toolchain.sh` touches this file.
    if Path::new(".cuda/bin/nvcc").exists() {
        println!("cargo::rerun-if-changed=.cuda/bin/nvcc");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let kernels = files("kernels", "cu");
    let (mut jobs, images) = device_jobs(&kernels, &out);
    // The machine's own test kernels run on the machine only.
    let host_kernels = [kernels.clone(), files("kernels/simt", "cu")].concat();
    let simt = env::var_os("CARGO_FEATURE_SIMT").is_some();
    let (host, objects) = if simt { host_jobs(&host_kernels, &out) } else { Default::default() };
    jobs.extend(host);
    run(jobs);
    if simt {
        cc::Build::new().cpp(true).objects(&objects).compile("gems_simt");
        fs::write(out.join("simt.rs"), host_objects(&host_kernels)).expect("OUT_DIR is writable");
    }
    let nvcc = find_nvcc().filter(|_| !images.is_empty()).map_or(String::new(), |nvcc| release(&nvcc));
    fs::write(out.join("kernels.rs"), table(&images, &nvcc)).expect("OUT_DIR is writable");
    fs::write(out.join("abi.rs"), limits() + &structures()).expect("OUT_DIR is writable");
    fs::write(out.join("names.rs"), kernel_names(&kernels)).expect("OUT_DIR is writable");
}

/// The files of a directory with an extension, sorted.
fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|e| panic!("{directory}: {e}"));
    let mut found: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    found.retain(|p| p.extension().is_some_and(|e| e == extension));
    found.sort();
    found
}

/// What kernels may include.
fn kernel_headers() -> Vec<PathBuf> {
    [files("kernels", "cuh"), files("kernels", "h")].concat()
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The machine's own sources and every kernel, by the host's C++ compiler.
fn host_jobs(kernels: &[PathBuf], out: &Path) -> (Vec<Job>, Vec<PathBuf>) {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).include("kernels").flag("-Wno-unknown-pragmas");
    // The same results on every machine: no contraction to fused multiply-add where the CPU has it.
    build.flag("-ffp-contract=off").flag("-fno-strict-aliasing");
    // Line tables whatever the profile: the machine's reports name source lines.
    build.flag("-g1");
    let compiler = build.get_compiler();
    let headers = [kernel_headers(), files("kernels/simt", "h")].concat();
    let mut jobs = Vec::new();
    for source in files("kernels/simt", "cpp").iter().chain(kernels) {
        let output = out.join(format!("simt-{}.o", stem(source)));
        let mut command = compiler.to_command();
        if source.extension().is_some_and(|e| e == "cu") {
            // Race and bounds checks come from the compiler's instrumentation, whose calls simt/check.cpp
            // answers; line tables let it name a kernel's lines. A frame that is too large for a fibre's stack
            // meets its guard page.
            command.args(["-fsanitize=thread", "-fstack-clash-protection", "-g1"]);
            command.args(["-include", "kernels/simt/cuda.h", "-x", "c++"]);
        }
        command.arg("-c").arg(source).arg("-o").arg(&output);
        let inputs = [std::slice::from_ref(source), &headers].concat();
        jobs.push(Job { command, inputs, output });
    }
    let objects = jobs.iter().map(|j| j.output.clone()).collect();
    (jobs, objects)
}

/// (kernel file, architecture such as `sm_80` or `ptx_80`, image).
type Image = (String, String, PathBuf);

/// Every kernel for every architecture, by nvcc; nothing when there is none.
fn device_jobs(kernels: &[PathBuf], out: &Path) -> (Vec<Job>, Vec<Image>) {
    let mode = env::var("GEMS_CUDA").unwrap_or_else(|_| "auto".into());
    assert!(
        ["auto", "require", "off"].contains(&mode.as_str()),
        "GEMS_CUDA is auto, require or off, not `{mode}`"
    );
    let nvcc = if mode == "off" { None } else { find_nvcc() };
    let Some(nvcc) = nvcc else {
        assert!(
            mode != "require",
            "GEMS_CUDA=require, but there is no nvcc; `just cuda-toolchain` brings one"
        );
        if mode == "auto" {
            println!(
                "cargo::warning=no CUDA compiler: built without GPU kernels (`just cuda-toolchain` brings one)"
            );
        }
        return (Vec::new(), Vec::new());
    };
    let known = supported(&nvcc);
    let wanted = env::var("GEMS_CUDA_ARCHS").unwrap_or_else(|_| ARCHITECTURES.into());
    let headers = kernel_headers();
    let (mut jobs, mut images) = (Vec::new(), Vec::new());
    let targets = wanted.split(',').map(|a| (a.trim(), "-cubin", "sm")).chain([(PTX, "-ptx", "ptx")]);
    for (arch, kind, prefix) in targets {
        let number = arch.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        if !known.iter().any(|k| k == number) {
            println!("cargo::warning=this CUDA compiler does not know sm_{arch}; left out");
            continue;
        }
        // A kernel that is named after an architecture is for that one only.
        let fits = |k: &&PathBuf| !stem(k).contains("_sm") || stem(k).ends_with(&format!("_sm{arch}"));
        for source in kernels.iter().filter(fits) {
            let output = out.join(format!("{}.{prefix}_{arch}", stem(source)));
            let mut command = Command::new(&nvcc);
            let target = format!("-arch={}_{arch}", if kind == "-ptx" { "compute" } else { "sm" });
            command.args([kind, "-std=c++17", "-O3", &target]).arg(source).arg("-o").arg(&output);
            let inputs = [std::slice::from_ref(source), &headers].concat();
            jobs.push(Job { command, inputs, output: output.clone() });
            images.push((stem(source), format!("{prefix}_{arch}"), output));
        }
    }
    (jobs, images)
}

fn find_nvcc() -> Option<PathBuf> {
    let explicit = env::var_os("NVCC").map(PathBuf::from);
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let root = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let places = homes.chain(root.map(|r| r.join(".cuda"))).map(|h| h.join("bin/nvcc"));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = env::split_paths(&path).map(|p| p.join("nvcc")).collect();
    explicit.into_iter().chain(places).chain(on_path).find(|p| p.is_file())
}

/// Numbers of the architectures that this nvcc compiles for.
fn supported(nvcc: &Path) -> Vec<String> {
    let listed = Command::new(nvcc).arg("--list-gpu-arch").output();
    let listed = listed.unwrap_or_else(|e| panic!("{} --list-gpu-arch: {e}", nvcc.display()));
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    text.lines().filter_map(|l| l.trim().strip_prefix("compute_")).map(str::to_string).collect()
}

/// The CUDA release of this nvcc, such as `13.0`.
fn release(nvcc: &Path) -> String {
    let said = Command::new(nvcc).arg("--version").output();
    let said = said.unwrap_or_else(|e| panic!("{} --version: {e}", nvcc.display()));
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let number = text.split("release ").nth(1).and_then(|t| t.split(',').next());
    number.unwrap_or_default().trim().to_string()
}

/// Runs what is out of date, as many at a time as cargo allows.
fn run(jobs: Vec<Job>) {
    let threads: usize = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let queue = Mutex::new(jobs.into_iter());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some(job) = queue.lock().expect("no thread panics").next() else { break };
                    if let Err(message) = job.run() {
                        failures.lock().expect("no thread panics").push(message);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no thread panics");
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

impl Job {
    fn run(mut self) -> Result<(), String> {
        let mut hasher = DefaultHasher::new();
        format!("{:?}", self.command).hash(&mut hasher);
        for input in &self.inputs {
            fs::read(input).map_err(|e| format!("{}: {e}", input.display()))?.hash(&mut hasher);
        }
        let key_file = PathBuf::from(format!("{}.key", self.output.display()));
        let key = hasher.finish().to_string();
        if self.output.exists() && fs::read_to_string(&key_file).is_ok_and(|k| k == key) {
            return Ok(());
        }
        let result = self.command.output().map_err(|e| format!("{:?}: {e}", self.command))?;
        if !result.status.success() {
            let said = String::from_utf8_lossy(&result.stderr).into_owned();
            return Err(format!(
                "{:?} failed:\n{}{said}",
                self.command,
                String::from_utf8_lossy(&result.stdout)
            ));
        }
        fs::write(&key_file, key).map_err(|e| format!("{}: {e}", key_file.display()))
    }
}

/// The images for GPUs as Rust.
fn table(images: &[Image], nvcc: &str) -> String {
    let mut text = String::from("/// (file, architecture, image) of every compiled kernel file.\n");
    text.push_str("pub static IMAGES: &[(&str, &str, &[u8])] = &[\n");
    for (file, arch, path) in images {
        let _ = writeln!(text, "    ({file:?}, {arch:?}, include_bytes!({:?})),", path.display().to_string());
    }
    text.push_str("];\n\n");
    let _ = writeln!(text, "/// The CUDA release of the compiler that made them; empty without images.");
    let _ = writeln!(text, "const NVCC: &str = {nvcc:?};");
    text
}

/// One symbol of every host object as Rust: its use keeps the linker from leaving the object, and the kernels that it
/// registers, out.
fn host_objects(kernels: &[PathBuf]) -> String {
    let mut text = String::from("unsafe extern \"C\" {\n");
    for kernel in kernels {
        let _ = writeln!(text, "    fn gems_simt_file_{}();", stem(kernel));
    }
    text.push_str("}\n\n/// Keeps every kernel file's host object in the program.\nfn keep_kernels() {\n");
    for kernel in kernels {
        text.push_str("    // SAFETY: an empty function without arguments.\n");
        let _ = writeln!(text, "    unsafe {{ gems_simt_file_{}() }};", stem(kernel));
    }
    text.push_str("}\n");
    text
}

/// Kernels whose names differ in types, orientations and sizes only.
struct Family {
    arguments: String,
    file: PathBuf,
    /// What each of them has behind the family's name, such as `["nt", "bf16", "128"]`.
    members: BTreeSet<Vec<String>>,
}

/// What the last parts of a kernel's name say.
struct Parameter {
    rust: &'static str,
    /// As names have them, and as patterns.
    values: &'static [(&'static str, &'static str)],
    /// Whether the patterns are all that there are.
    closed: bool,
}

/// Types, orientations of two operands, and sizes.
const PARAMETERS: [Parameter; 3] = [
    Parameter { rust: "DType", values: &[("f32", "DType::F32"), ("bf16", "DType::BF16")], closed: true },
    Parameter {
        rust: "(bool, bool)",
        values: &[
            ("nn", "(false, false)"),
            ("nt", "(false, true)"),
            ("tn", "(true, false)"),
            ("tt", "(true, true)"),
        ],
        closed: true,
    },
    Parameter { rust: "usize", values: &[("64", "64"), ("128", "128"), ("256", "256")], closed: false },
];

/// The parameter that a part of a name is a value of.
fn parameter(part: &str) -> Option<&'static Parameter> {
    PARAMETERS.iter().find(|p| p.values.iter().any(|(name, _)| *name == part))
}

/// Every kernel as a Rust constant or, where there are several for different types, orientations or sizes, as a function
/// that chooses; `None` where there is none of that kind.
fn kernel_names(sources: &[PathBuf]) -> String {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for file in sources {
        let source = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        for line in source.lines().filter(|l| l.starts_with("GEMS_KERNEL")) {
            let inside = line.split_once('(').unwrap_or_default().1;
            let name = inside.split(',').next().unwrap_or_default().trim();
            let arguments = inside.split(", ").find(|part| part.ends_with("Arguments"));
            let arguments = arguments.unwrap_or_else(|| panic!("{}: {line}", file.display())).to_string();
            let mut parts: Vec<String> = name.split('_').map(String::from).collect();
            let own = parts.iter().rposition(|p| parameter(p).is_none()).map_or(0, |last| last + 1);
            let member = parts.split_off(own);
            let new = || Family { arguments, file: file.clone(), members: BTreeSet::new() };
            families.entry(parts.join("_")).or_insert_with(new).members.insert(member);
        }
    }
    families.iter().map(|(name, family)| family.choice(name)).collect()
}

impl Family {
    fn choice(&self, name: &str) -> String {
        let Family { arguments, file, members } = self;
        let kinds: Vec<&Parameter> =
            members.first().into_iter().flatten().filter_map(|p| parameter(p)).collect();
        let what = format!("/// `{name}` of `{}`.\n", file.display());
        if kinds.is_empty() {
            let constant = name.to_uppercase();
            return format!("{what}pub const {constant}: Kernel<{arguments}> = Kernel::named({name:?});\n");
        }
        let all: usize = kinds.iter().map(|k| k.values.len()).product();
        let complete = kinds.iter().all(|k| k.closed) && members.len() == all;
        let returns = format!("Kernel<{arguments}>");
        let returns = if complete { returns } else { format!("Option<{returns}>") };
        let letters = ["a", "b", "c"];
        let taken: Vec<String> =
            letters.iter().zip(&kinds).map(|(l, k)| format!("{l}: {}", k.rust)).collect();
        let mut text = format!("{what}pub fn {name}({}) -> {returns} {{\n", taken.join(", "));
        let _ = writeln!(text, "    match ({},) {{", letters[..kinds.len()].join(", "));
        for member in members {
            let values = member.iter().zip(&kinds).flat_map(|(part, kind)| {
                kind.values.iter().filter(move |(name, _)| name == part).map(|(_, pattern)| *pattern)
            });
            let patterns: Vec<&str> = values.collect();
            let kernel = format!("Kernel::named(\"{name}_{}\")", member.join("_"));
            let kernel = if complete { kernel } else { format!("Some({kernel})") };
            let _ = writeln!(text, "        ({},) => {kernel},", patterns.join(", "));
        }
        text.push_str(if complete { "    }\n}\n" } else { "        _ => None,\n    }\n}\n" });
        text
    }
}

/// `kernels/limits.h` as Rust constants.
fn limits() -> String {
    let mut text = String::new();
    let source = fs::read_to_string("kernels/limits.h").expect("kernels/limits.h is readable");
    for line in source.lines().filter_map(|l| l.strip_prefix("constexpr int ")) {
        let (constant, what) =
            line.split_once(";  // ").unwrap_or_else(|| panic!("kernels/limits.h: {line}"));
        let (name, value) = constant.split_once(" = ").unwrap_or_else(|| panic!("kernels/limits.h: {line}"));
        let _ = writeln!(text, "/// {what}\npub const {name}: usize = {value};");
    }
    text
}

/// A structure of the kernels' sources.
struct Structure {
    file: PathBuf,
    /// Such as `alignas(128)`; mostly empty.
    alignment: String,
    /// Names and Rust types.
    fields: Vec<(String, String)>,
}

/// Every structure that is a kernel's arguments or a part of them, as a Rust structure with the same fields.
fn structures() -> String {
    let mut known = BTreeMap::new();
    for file in [files("kernels", "cu"), kernel_headers()].concat() {
        let source = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        for text in source.split("\nstruct ").skip(1) {
            let (head, rest) = text.split_once('{').unwrap_or_default();
            let (alignment, name) = head.trim().rsplit_once(' ').unwrap_or(("", head.trim()));
            let (file, alignment) = (file.clone(), alignment.replace("alignas", ", align"));
            let fields = fields(rest.split("};").next().unwrap_or_default());
            let before = known.insert(name.to_string(), Structure { file, alignment, fields });
            assert!(before.is_none(), "two structures are called {name}");
        }
    }
    let (mut wanted, mut text) = (Vec::new(), String::new());
    wanted.extend(known.keys().filter(|name| name.ends_with("Arguments")));
    let mut next = 0;
    while let Some(name) = wanted.get(next).copied() {
        next += 1;
        let Structure { file, alignment, fields } = &known[name];
        let _ = writeln!(text, "/// `struct {name}` of `{}`.", file.display());
        let _ =
            writeln!(text, "#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]\n#[repr(C{alignment})]");
        let _ = writeln!(text, "pub struct {name} {{");
        for (field, kind) in fields {
            let _ = writeln!(text, "    pub {field}: {kind},");
            let element = kind.trim_start_matches('[').split(';').next().unwrap_or_default();
            let part = known.get_key_value(element).map(|(name, _)| name);
            wanted.extend(part.filter(|name| !wanted.contains(name)));
        }
        text.push_str("}\n");
    }
    text
}

/// The fields that a structure's body declares, such as `const float *x, *y; int n, list[N];`.
fn fields(body: &str) -> Vec<(String, String)> {
    let lines = body.lines().filter_map(|l| l.split("//").next()).filter(|l| !l.contains('('));
    let declarations: String = lines.collect();
    let mut fields = Vec::new();
    for declaration in declarations.split(';') {
        let declaration = declaration.trim();
        let Some((kind, names)) = declaration.trim_start_matches("const ").split_once(' ') else { continue };
        let kind = match kind {
            _ if declaration.contains('*') => "u64",
            "int" => "i32",
            "int64_t" => "i64",
            "uint32_t" => "u32",
            "uint64_t" => "u64",
            "float" => "f32",
            structure => structure,
        };
        for name in names.split(',') {
            let name = name.trim_matches([' ', '*', ']']);
            fields.push(match name.split_once('[') {
                Some((name, count)) => (name.to_string(), format!("[{kind}; {count}]")),
                None => (name.to_string(), kind.to_string()),
            });
        }
    }
    fields
}
