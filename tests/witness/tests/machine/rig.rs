//! Buffers, programs and launches of the tests.

use gems_witness::decode::{Program, decode};
use gems_witness::fault::{Fault, Kind};
use gems_witness::machine::{Allocation, Counters, Launch, Memory, Options, run};
use gems_witness::parse::Module;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

/// Memory that kernels touch, aligned to 256 bytes as the driver's is.
pub struct Buffer {
    data: Vec<u128>,
    first: usize,
    bytes: usize,
    pub allocation: Allocation,
}

impl Buffer {
    /// Nobody has written it.
    pub fn unwritten(bytes: usize) -> Self {
        let data = vec![u128::MAX; bytes.div_ceil(16) + 16];
        let first = (data.as_ptr() as usize).next_multiple_of(256) - data.as_ptr() as usize;
        let allocation = Allocation::new(data.as_ptr() as u64 + first as u64, bytes as u64);
        Self { data, first: first / 16, bytes, allocation }
    }

    pub fn of_bytes(bytes: &[u8]) -> Self {
        let mut b = Self::unwritten(bytes.len());
        b.bytes_mut().copy_from_slice(bytes);
        b.allocation.mark_written(b.at(), bytes.len() as u64);
        b
    }

    pub fn zeros(bytes: usize) -> Self {
        Self::of_bytes(&vec![0; bytes])
    }

    pub fn of_u32(values: &[u32]) -> Self {
        Self::of_bytes(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }

    pub fn of_f32(values: &[f32]) -> Self {
        Self::of_u32(&values.iter().map(|v| v.to_bits()).collect::<Vec<_>>())
    }

    pub fn of_bf16(values: &[f32]) -> Self {
        Self::of_bytes(&values.iter().flat_map(|v| bf16(*v).to_le_bytes()).collect::<Vec<_>>())
    }

    pub fn at(&self) -> u64 {
        self.allocation.start()
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the vector has at least that many bytes, and any of them are valid.
        unsafe { std::slice::from_raw_parts_mut(self.data[self.first..].as_mut_ptr().cast(), self.bytes) }
    }

    pub fn u32s(&self) -> Vec<u32> {
        // A kernel has written it behind the compiler's back.
        let words = std::hint::black_box(&self.data)[self.first..]
            .iter()
            .flat_map(|w| (0..4).map(move |i| (w >> (32 * i)) as u32));
        words.take(self.bytes / 4).collect()
    }

    pub fn u64s(&self) -> Vec<u64> {
        self.u32s().chunks(2).map(|c| u64::from(c[0]) | u64::from(c[1]) << 32).collect()
    }

    pub fn f32s(&self) -> Vec<f32> {
        self.u32s().into_iter().map(f32::from_bits).collect()
    }

    pub fn bf16s(&self) -> Vec<f32> {
        let words = std::hint::black_box(&self.data)[self.first..]
            .iter()
            .flat_map(|w| (0..8).map(move |i| (w >> (16 * i)) as u16));
        words.take(self.bytes / 2).map(|v| f32::from_bits(u32::from(v) << 16)).collect()
    }
}

/// The nearest bf16 of a finite number.
pub fn bf16(x: f32) -> u16 {
    let b = x.to_bits();
    ((b + 0x7fff + (b >> 16 & 1)) >> 16) as u16
}

/// Random numbers without end: xorshift.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// `n` numbers in -1 .. 1 that bf16 holds exactly.
    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| {
                f32::from_bits(u32::from(bf16((self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0)) << 16)
            })
            .collect()
    }
}

/// A program of a module's text.
pub fn program(text: &str, kernel: &str) -> Result<Program, String> {
    // Tables that no test's path reads.
    let module = Module::parse(text)?;
    let globals: HashMap<String, u64> = module.globals.keys().map(|name| (name.clone(), 0)).collect();
    decode(&module, kernel, &globals)
}

/// A program of one entry `k` with parameters a, b, c (u64) and n (u32), of which `%rd1`, `%rd2`, `%rd3` and `%r1` hold the values,
/// `%r2` the thread and `%r3` the block; up to 200 registers `%r`, `%rd`, `%f`, `%fd`, `%rs`, `%p`.
pub fn assemble(body: &str) -> Program {
    try_assemble(body).unwrap_or_else(|e| panic!("{e}"))
}

pub fn try_assemble(body: &str) -> Result<Program, String> {
    let text = format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.extern .shared .align 128 .b8 shared[];\n\
         .visible .entry k(.param .u64 a, .param .u64 b, .param .u64 c, .param .u32 n)\n.maxntid 1024, 1, 1\n{{\n\
         .reg .pred %p<200>; .reg .b16 %rs<200>; .reg .b32 %r<200>; .reg .b64 %rd<200>; .reg .f32 %f<200>; .reg .f64 %fd<200>;\n\
         .local .align 16 .b8 depot[64];\n\
         ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; ld.param.u64 %rd3, [c]; ld.param.u32 %r1, [n];\n\
         mov.u32 %r2, %tid.x; mov.u32 %r3, %ctaid.x;\n{body}\nret;\n}}\n"
    );
    program(&text, "k")
}

/// How a hand-written program is launched.
pub struct Shape {
    pub blocks: u32,
    pub threads: u32,
    pub shared: u32,
    pub n: u32,
    pub options: Options,
}

impl Default for Shape {
    fn default() -> Self {
        let options = Options { races: true, limit: 5_000_000, ..Options::default() };
        Self { blocks: 1, threads: 32, shared: 0, n: 0, options }
    }
}

impl Shape {
    pub fn blocks(blocks: u32) -> Self {
        Self { blocks, ..Self::default() }
    }

    pub fn threads(threads: u32) -> Self {
        Self { threads, ..Self::default() }
    }

    pub fn shared(self, shared: u32) -> Self {
        Self { shared, ..self }
    }

    /// Runs a program of `assemble` with up to three buffers.
    pub fn run(&self, p: &Program, buffers: &[&Buffer]) -> Result<(), Fault> {
        let mut arguments: Vec<u8> =
            (0..3).flat_map(|i| buffers.get(i).map_or(0, |b| b.at()).to_le_bytes()).collect();
        arguments.extend(self.n.to_le_bytes());
        launch(p, [self.blocks, 1, 1], [self.threads, 1, 1], self.shared, &arguments, buffers, &self.options)
    }
}

pub fn launch(
    program: &Program,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    parameters: &[u8],
    buffers: &[&Buffer],
    options: &Options,
) -> Result<(), Fault> {
    let memory = Memory::new(buffers.iter().map(|b| b.allocation.clone()).collect());
    run(&Launch { program, grid, block, shared, parameters, memory: &memory }, options, &Counters::default())
}

/// The fault of a run, which must be of that kind and say all of `parts`.
#[track_caller]
pub fn expect_fault(result: Result<(), Fault>, kind: Kind, parts: &[&str]) -> Fault {
    let fault = result.expect_err("nothing was found");
    assert_eq!(fault.kind, kind, "{fault}");
    for part in parts {
        assert!(fault.to_string().contains(part), "`{part}` is not in: {fault}");
    }
    fault
}

/// The project's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn nvcc() -> Option<PathBuf> {
    let given = std::env::var_os("NVCC").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|p| p.join("nvcc"));
    given.into_iter().chain([root().join(".cuda/bin/nvcc")]).chain(on_path).find(|p| p.is_file())
}

/// The PTX of a kernel file with line numbers, such as `matmul` for `80`; none, and a line that says so, without nvcc.
pub fn ptx(file: &str, arch: &str) -> Option<Arc<String>> {
    static MADE: Mutex<Option<HashMap<String, Arc<String>>>> = Mutex::new(None);
    let Some(nvcc) = nvcc() else {
        eprintln!("skipped: no nvcc to compile {file} with");
        return None;
    };
    let mut made = MADE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let name = format!("{file}.ptx_{arch}");
    let text = made
        .get_or_insert_default()
        .entry(name.clone())
        .or_insert_with(|| Arc::new(compile(&nvcc, file, arch, &name)));
    Some(Arc::clone(text))
}

/// What was compiled is kept beside the tests, by what it was compiled of.
fn compile(nvcc: &Path, file: &str, arch: &str, name: &str) -> String {
    let kernels = root().join("kernels");
    let mut hasher = DefaultHasher::new();
    let mut sources: Vec<PathBuf> =
        kernels.read_dir().expect("kernels/").filter_map(|e| Some(e.ok()?.path())).collect();
    sources.retain(|p| {
        p.extension().is_some_and(|e| e == "cuh" || e == "h") || p.file_stem().is_some_and(|s| s == file)
    });
    sources.sort();
    sources.iter().for_each(|p| std::fs::read(p).unwrap_or_default().hash(&mut hasher));
    nvcc.hash(&mut hasher);
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{:016x}-{name}", hasher.finish()));
    if !kept.exists() {
        let source = kernels.join(format!("{file}.cu"));
        let arguments = ["-ptx", "-lineinfo", "-std=c++17", "-O3", &format!("-arch=compute_{arch}"), "-o"]
            .map(String::from);
        let fresh = kept.with_extension(format!("{}.part", std::process::id()));
        let status = Command::new(nvcc).args(arguments).arg(&fresh).arg(&source).status().expect("nvcc runs");
        assert!(status.success(), "nvcc {}", source.display());
        std::fs::rename(&fresh, &kept).expect("the PTX is kept");
    }
    std::fs::read_to_string(&kept).expect("PTX")
}
