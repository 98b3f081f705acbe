//! The project's kernels with their memory, and what must be in it afterwards: by f64.

use super::arguments::{Arguments, tensor_map};
use super::rig::{Buffer, Random, bf16, launch, program};
use gems_witness::decode::Program;
use gems_witness::fault::Fault;
use gems_witness::machine::Options;

/// One launch of a case.
pub struct Step {
    pub kernel: String,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub arguments: Arguments,
}

/// How a buffer is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum As {
    F32,
    Bf16,
    /// f32 that are all to be exactly so.
    Exact,
}

/// A kernel of the project with its memory, and what must be in it afterwards.
pub struct Case {
    pub file: &'static str,
    pub arch: &'static str,
    pub steps: Vec<Step>,
    pub buffers: Vec<Buffer>,
    /// Buffer, how it is read, its values, tolerance relative to the largest.
    pub wanted: Vec<(usize, As, Vec<f64>, f64)>,
}

/// What a run of a case found.
#[derive(Debug)]
pub enum Found {
    Fault(Box<Fault>),
    Wrong(String),
}

impl Case {
    /// The programs of its steps, in some PTX of its file.
    pub fn programs(&self, text: &str) -> Result<Vec<Program>, String> {
        self.steps.iter().map(|s| program(text, &s.kernel)).collect()
    }

    /// Runs the case.
    pub fn run(&self, programs: &[Program], options: &Options) -> Result<(), Found> {
        let buffers: Vec<&Buffer> = self.buffers.iter().collect();
        for (s, program) in self.steps.iter().zip(programs) {
            launch(program, s.grid, s.block, s.shared, &s.arguments.0, &buffers, options)
                .map_err(|f| Found::Fault(Box::new(f)))?;
        }
        for (buffer, read, want, tolerance) in &self.wanted {
            let b = &self.buffers[*buffer];
            let got = if *read == As::Bf16 { b.bf16s() } else { b.f32s() };
            let largest = want.iter().fold(0f64, |m, w| m.max(w.abs()));
            for (i, (g, w)) in got.iter().zip(want).enumerate() {
                let error = (f64::from(*g) - w).abs();
                if !(error <= tolerance * largest || *read == As::Exact && f64::from(*g) == *w) {
                    return Err(Found::Wrong(format!(
                        "{}: value {i} is {g}, {w} wanted",
                        self.steps[0].kernel
                    )));
                }
            }
        }
        Ok(())
    }
}

pub fn f64s(v: &[f32]) -> Vec<f64> {
    v.iter().map(|v| f64::from(*v)).collect()
}

/// C = op(A) op(B) of M x N x K.
pub fn product(a: &[f32], b: &[f32], (m, n, k): (usize, usize, usize), ta: bool, tb: bool) -> Vec<f64> {
    let mut c = vec![0f64; m * n];
    for i in 0..m {
        for l in 0..k {
            let x = f64::from(if ta { a[l * m + i] } else { a[i * k + l] });
            for j in 0..n {
                c[i * n + j] += x * f64::from(if tb { b[j * k + l] } else { b[l * n + j] });
            }
        }
    }
    c
}

fn shape_of(rows: usize, cols: usize, transposed: bool) -> (usize, usize) {
    if transposed { (cols, rows) } else { (rows, cols) }
}

/// `MatmulArguments` of one product.
fn matmul_arguments(
    a: &Buffer,
    b: &Buffer,
    c: &Buffer,
    (m, n, k): (usize, usize, usize),
    ta: bool,
    tb: bool,
) -> Arguments {
    let ((ra, ca), (rb, cb)) = (shape_of(m, k, ta), shape_of(k, n, tb));
    let matrices =
        Arguments::default().matrix(a, ra, ca).matrix(b, rb, cb).absent(2).matrix(c, m, n).absent(1);
    let sizes = matrices.i32s(&[m as i32, n as i32, k as i32, 0, ta.into(), tb.into()]);
    sizes.f32(1.0).f32(0.0).i32s(&[0, 0]).u64(0)
}

/// A plain product by `matmul_tc_*`, `matmul_plain_*` or `matmul_sm90a_*`.
pub fn matmul(kernel: &str, size: (usize, usize, usize), ta: bool, tb: bool, wide: bool) -> Case {
    let (m, n, k) = size;
    let mut random = Random::new(5);
    let (a, b) = (random.values(m * k), random.values(k * n));
    let buffers =
        vec![Buffer::of_bf16(&a), Buffer::of_bf16(&b), Buffer::unwritten(m * n * if wide { 4 } else { 2 })];
    let arguments = matmul_arguments(&buffers[0], &buffers[1], &buffers[2], size, ta, tb);
    let (read, tolerance) = if wide { (As::F32, 1e-6) } else { (As::Bf16, 4e-3) };
    let wanted = vec![(2, read, product(&a, &b, size, ta, tb), tolerance)];
    let (tile, shared) =
        if kernel.contains("plain") { (64, 2 * 16 * 68 * 4) } else { (128, 3 * 32 * 2 * 256) };
    let blocks = (m.div_ceil(tile) * n.div_ceil(tile)) as u32;
    let step = Step { kernel: kernel.into(), grid: [blocks, 1, 1], block: [256, 1, 1], shared, arguments };
    Case { file: "matmul", arch: "80", steps: vec![step], buffers, wanted }
}

pub fn letters(ta: bool, tb: bool, wide: bool) -> String {
    format!(
        "{}{}_{}",
        if ta { 't' } else { 'n' },
        if tb { 't' } else { 'n' },
        if wide { "f32" } else { "bf16" }
    )
}

/// A low-rank branch beside a product: y = x W^T + (x A^T) B^T, or with both plain.
pub struct Branch {
    pub rank: usize,
    pub transposed: bool,
}

/// The parts of an adapted linear.
struct Linear {
    buffers: Vec<Buffer>,
    arguments: Arguments,
    maps: Vec<u8>,
    wanted: Vec<f64>,
}

/// Buffers: x, W, S, B, y, A, tickets.
fn linear_parts(
    (m, n, k): (usize, usize, usize),
    r: usize,
    tb: bool,
    tickets: usize,
    columns: usize,
) -> Linear {
    let mut random = Random::new(8);
    let (x, w, a, b) =
        (random.values(m * k), random.values(k * n), random.values(k * r), random.values(r * n));
    let s: Vec<f32> = product(&x, &a, (m, r, k), false, tb)
        .iter()
        .map(|v| f32::from_bits(u32::from(bf16(*v as f32)) << 16))
        .collect();
    let plain = product(&x, &w, (m, n, k), false, tb);
    let wanted = plain.iter().zip(product(&s, &b, (m, n, r), false, tb)).map(|(p, q)| p + q).collect();
    let empty = |n: usize| Buffer::unwritten(n * 2);
    let buffers = vec![
        Buffer::of_bf16(&x),
        Buffer::of_bf16(&w),
        empty(m * r),
        Buffer::of_bf16(&b),
        empty(m * n),
        Buffer::of_bf16(&a),
        Buffer::zeros(4 * tickets),
    ];
    let ((rw, cw), (rb, cb), (ra, ca)) = (shape_of(k, n, tb), shape_of(r, n, tb), shape_of(k, r, tb));
    let matrices =
        Arguments::default().matrix(&buffers[0], m, k).matrix(&buffers[1], rw, cw).matrix(&buffers[2], m, r);
    let sizes = matrices.matrix(&buffers[3], rb, cb).matrix(&buffers[4], m, n).absent(1);
    let product = sizes
        .i32s(&[m as i32, n as i32, k as i32, r as i32, 0, tb.into()])
        .f32(1.0)
        .f32(0.0)
        .i32s(&[0, 0])
        .u64(0);
    let branch = matmul_arguments(&buffers[0], &buffers[5], &buffers[2], (m, r, k), false, tb);
    let along = |outputs: usize| if tb { outputs } else { 64 };
    let shapes = [
        (0, m, k, 128),
        (1, rw, cw, along(columns)),
        (2, m, r, 128),
        (3, rb, cb, along(columns)),
        (5, ra, ca, along(of_branch(r, columns))),
    ];
    let maps = shapes
        .iter()
        .flat_map(|(b, rows, cols, tile)| tensor_map(&buffers[*b], *rows, *cols, *tile))
        .collect();
    Linear { arguments: product.bytes(&branch.0).at(&buffers[6]), buffers, maps, wanted }
}

/// Columns of a branch's tiles.
fn of_branch(rank: usize, columns: usize) -> usize {
    if rank <= 64 { 64 } else { columns.min(rank.next_multiple_of(128)) }
}

/// `linear_tc_*`.
pub fn linear_tc(size: (usize, usize, usize), rank: usize, tb: bool) -> Case {
    let (m, n, _) = size;
    let tiles = m.div_ceil(128);
    let Linear { buffers, arguments, wanted, .. } = linear_parts(size, rank, tb, 1 + 2 * tiles, 128);
    let blocks = (tiles * (rank.div_ceil(64) + n.div_ceil(128))) as u32;
    let kernel = format!("linear_tc_{}", letters(false, tb, false));
    let step = Step {
        kernel,
        grid: [blocks, 1, 1],
        block: [256, 1, 1],
        shared: 3 * 32 * 2 * 256,
        arguments: arguments.u64(0),
    };
    let zeros = vec![0.0; 1 + 2 * tiles];
    Case {
        file: "matmul",
        arch: "80",
        steps: vec![step],
        buffers,
        wanted: vec![(4, As::Bf16, wanted, 8e-3), (6, As::Exact, zeros, 0.0)],
    }
}

fn hopper_step(kernel: String, tiles: usize, columns: usize, arguments: Arguments) -> Step {
    let stages = if columns == 256 { 4 } else { 6 };
    let shared = 1104 + stages * ((128 + columns) / 64 * 8192 + 16) + 128 * 128 * 2;
    Step { kernel, grid: [tiles.min(3) as u32, 1, 1], block: [384, 1, 1], shared: shared as u32, arguments }
}

/// `matmul_sm90a_*` without a branch.
pub fn hopper(size: (usize, usize, usize), ta: bool, tb: bool, wide: bool, columns: usize) -> Case {
    let (m, n, k) = size;
    let mut case = matmul("", size, ta, tb, wide);
    let tiles_m = m.div_ceil(128);
    case.buffers.push(Buffer::zeros(4 * (1 + 2 * tiles_m)));
    let ((ra, ca), (rb, cb)) = (shape_of(m, k, ta), shape_of(k, n, tb));
    let map_a = tensor_map(&case.buffers[0], ra, ca, if ta { 64 } else { 128 });
    let map_b = tensor_map(&case.buffers[1], rb, cb, if tb { columns } else { 64 });
    let mut arguments = Arguments::default();
    for map in [&map_a, &map_b, &map_a, &map_b] {
        arguments = arguments.bytes(map);
    }
    let arguments = arguments
        .zeros(128)
        .bytes(&case.steps[0].arguments.0)
        .zeros(192)
        .at(&case.buffers[3])
        .zeros(8)
        .i32(64)
        .i32(1)
        .zeros(104);
    let kernel = format!("matmul_sm90a_{}_{columns}", letters(ta, tb, wide));
    case.steps = vec![hopper_step(kernel, tiles_m * n.div_ceil(columns), columns, arguments)];
    (case.file, case.arch) = ("matmul_sm90a", "90a");
    case.wanted.push((3, As::Exact, vec![0.0; 1 + 2 * tiles_m], 0.0));
    case
}

/// `matmul_sm90a_*_bf16_*` with a branch.
pub fn hopper_linear(size: (usize, usize, usize), branch: &Branch, columns: usize) -> Case {
    let (m, n, _) = size;
    let tiles_m = m.div_ceil(128);
    let wide = of_branch(branch.rank, columns);
    let l = linear_parts(size, branch.rank, branch.transposed, 1 + 2 * tiles_m, columns);
    let arguments =
        Arguments::default().bytes(&l.maps).bytes(&l.arguments.0).zeros(8).i32(wide as i32).i32(1).zeros(104);
    let kernel = format!("matmul_sm90a_{}_{columns}", letters(false, branch.transposed, false));
    let tiles = tiles_m * (n.div_ceil(columns) + branch.rank.div_ceil(wide));
    let steps = vec![hopper_step(kernel, tiles, columns, arguments)];
    let wanted = vec![(4, As::Bf16, l.wanted, 8e-3), (6, As::Exact, vec![0.0; 1 + 2 * tiles_m], 0.0)];
    Case { file: "matmul_sm90a", arch: "90a", steps, buffers: l.buffers, wanted }
}

/// `weight_grad_tc`: one block, its product with itself.
pub fn weight_grad((t, m, n): (usize, usize, usize), splits: usize) -> Case {
    let mut random = Random::new(10);
    let (y, x) = (random.values(t * m), random.values(t * n));
    let (tiles_m, tiles_n) = (m.div_ceil(64), n.div_ceil(64));
    let buffers = vec![
        Buffer::of_bf16(&y),
        Buffer::of_bf16(&x),
        Buffer::unwritten(m * n * 4),
        Buffer::unwritten(splits * tiles_m * tiles_n * 64 * 64 * 4),
        Buffer::zeros(4 * (tiles_m * tiles_n + tiles_m + 1)),
        Buffer::unwritten(8 * tiles_m),
        Buffer::unwritten(4),
    ];
    let matrices =
        Arguments::default().matrix(&buffers[0], t, m).matrix(&buffers[1], t, n).matrix(&buffers[2], m, n);
    let matrices = matrices.at(&buffers[3]).at(&buffers[4]).at(&buffers[5]).at(&buffers[6]);
    let group = matrices.i32s(&[splits as i32, 1, 1, 1, 1, 0]).i32s(&[0, t as i32, 0, 1]).zeros(31 * 16);
    let block = group.i32s(&[0, n as i32, 0]).f32(0.25).zeros(31 * 16);
    let arguments = block.i32s(&[0, 0, n as i32]).zeros(31 * 12);
    let want: Vec<f64> = product(&y, &x, (m, n, t), true, false).iter().map(|v| v * 0.25).collect();
    let square = want.iter().map(|v| v * v).sum();
    let grid = [tiles_m as u32, tiles_n as u32, splits as u32];
    let step = Step {
        kernel: "weight_grad_tc".into(),
        grid,
        block: [128, 1, 1],
        shared: 4 * 64 * 2 * 128 + 128,
        arguments,
    };
    let zeros = vec![0.0; tiles_m * tiles_n + tiles_m + 1];
    let wanted = vec![(2, As::F32, want, 1e-6), (6, As::F32, vec![square], 1e-5), (4, As::Exact, zeros, 0.0)];
    Case { file: "weight_grad", arch: "80", steps: vec![step], buffers, wanted }
}

/// `attention_tc_*` of two sequences.
pub fn attention(d: usize, causal: bool) -> Case {
    let (t, heads, scale, lengths) = (150, 2, 0.3f32, [0usize, 97, 150]);
    let width = heads * d;
    let mut random = Random::new(12);
    let v: Vec<Vec<f32>> = (0..3).map(|_| random.values(t * width)).collect();
    let mut buffers: Vec<Buffer> = v.iter().map(|v| Buffer::of_bf16(v)).collect();
    buffers.push(Buffer::unwritten(t * width * 2));
    buffers.push(Buffer::unwritten(t * heads * 4));
    buffers.push(Buffer::of_u32(&lengths.map(|l| l as u32)));
    let mut a = Arguments::default();
    for b in &buffers[..4] {
        a = a.matrix(b, t, width);
    }
    let a = a.matrix(&buffers[4], t, heads).absent(6).at(&buffers[5]).at(&buffers[5]).zeros(40);
    let arguments = a
        .i32s(&[heads as i32, heads as i32, d as i32, if causal { t as i32 } else { 0 }, 0])
        .f32(scale)
        .zeros(8);
    let mut want = vec![0f64; t * width];
    for (h, s) in (0..heads).flat_map(|h| (0..2).map(move |s| (h, s))) {
        let rows = lengths[s]..lengths[s + 1];
        let row = |v: &[f32], i: usize| f64s(&v[i * width + h * d..][..d]);
        for i in rows.clone() {
            let q = row(&v[0], i);
            let keys: Vec<usize> = rows.clone().filter(|j| !causal || *j <= i).collect();
            let dot =
                |j: usize| q.iter().zip(row(&v[1], j)).map(|(x, y)| x * y).sum::<f64>() * f64::from(scale);
            let weights: Vec<f64> = keys.iter().map(|j| dot(*j).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (j, w) in keys.iter().zip(&weights) {
                row(&v[2], *j)
                    .iter()
                    .enumerate()
                    .for_each(|(e, x)| want[i * width + h * d + e] += w / sum * x);
            }
        }
    }
    let padded = if d <= 64 { 64 } else { 128 };
    let step = Step {
        kernel: format!("attention_tc_{padded}"),
        grid: [2 * heads as u32, 2, 1],
        block: [64, 1, 1],
        shared: (64 + 4 * if padded == 64 { 64 } else { 32 }) * padded as u32 * 2,
        arguments,
    };
    Case {
        file: "attention",
        arch: "80",
        steps: vec![step],
        buffers,
        wanted: vec![(3, As::Bf16, want, 1.2e-2)],
    }
}

/// `adam_f32` of one matrix without factors, in blocks' parts: `last_of` adds them.
pub fn adam(rows: usize, cols: usize) -> Case {
    let mut random = Random::new(14);
    let (x, g) = (random.values(rows * cols), random.values(rows * cols));
    let blocks = (rows * cols.div_ceil(4)).div_ceil(256);
    let buffers = vec![
        Buffer::of_f32(&x),
        Buffer::of_f32(&g),
        Buffer::zeros(rows * cols * 4),
        Buffer::zeros(rows * cols * 4),
        Buffer::zeros(4),
        Buffer::unwritten(8 * blocks),
        Buffer::zeros(4),
    ];
    let head = Arguments::default().u64(0).at(&buffers[4]).at(&buffers[5]).at(&buffers[6]);
    let mut matrix = Arguments::default();
    for b in &buffers[..4] {
        matrix = matrix.matrix(b, rows, cols);
    }
    let matrix = matrix.absent(2).u64(0).u64(0).i32s(&[0, 1, 0]).f32(0.0).zeros(13 * 176);
    let block = Arguments::default().i32s(&[0, cols as i32, 0, 1, 0, -1]);
    let block = [0.9f32, 0.99, 0.5, 1.0, 1e-6, 1.0, 1.0, 1.0, 0.0]
        .iter()
        .fold(block, |b, v| b.f32(*v))
        .zeros(23 * 60);
    let arguments = head.bytes(&matrix.0).bytes(&block.0);
    let step = |v: f64| 0.5 * (0.1 * v) / ((0.01f32 as f64 * v * v).sqrt() + 1e-6);
    let want: Vec<f64> = x.iter().zip(&g).map(|(x, g)| f64::from(*x) - step(f64::from(*g))).collect();
    let square: f64 = g.iter().map(|g| step(f64::from(*g)).powi(2)).sum();
    let step = Step {
        kernel: "adam_f32".into(),
        grid: [blocks as u32, 1, 1],
        block: [256, 1, 1],
        shared: 512,
        arguments,
    };
    let wanted =
        vec![(0, As::F32, want, 1e-5), (4, As::F32, vec![square], 1e-4), (6, As::Exact, vec![0.0], 0.0)];
    Case { file: "adam", arch: "80", steps: vec![step], buffers, wanted }
}
