//! The project's kernels, from the compiler's PTX, against f64: in order and at random, few blocks at a time, with every
//! check on.

use super::arguments::Arguments;
use super::cases::*;
use super::rig::{Buffer, Random, program, ptx};
use gems_witness::machine::Options;

/// In order, then at random with as few blocks at a time as there may be.
pub fn manners() -> Vec<Options> {
    let of =
        |seed, resident| Options { races: true, seed, resident, limit: 50_000_000, ..Options::default() };
    vec![of(0, 1), of(0, 4), of(1, 1), of(2, 3), of(3, 8)]
}

/// Runs a case in all manners.
#[track_caller]
fn check(case: impl Fn() -> Case) {
    let first = case();
    let Some(text) = ptx(first.file, first.arch) else { return };
    let programs = first.programs(&text).expect("PTX that is modelled");
    for options in manners() {
        if let Err(found) = case().run(&programs, &options) {
            panic!("{options:?}: {found:?}");
        }
    }
}

#[test]
fn elementwise_and_dots() {
    check(|| {
        let (rows, cols) = (37, 100);
        let mut random = Random::new(1);
        let (x, y) = (random.values(rows * cols), random.values(rows * cols));
        let buffers = vec![Buffer::of_f32(&x), Buffer::of_bf16(&y)];
        let arguments = Arguments::default()
            .matrix(&buffers[0], rows, cols)
            .matrix(&buffers[1], rows, cols)
            .f32(0.5)
            .f32(-2.0);
        let grid = [(rows * cols.div_ceil(8)).div_ceil(256) as u32, 1, 1];
        let step = Step { kernel: "combine_f32_bf16".into(), grid, block: [256, 1, 1], shared: 0, arguments };
        let want = x.iter().zip(&y).map(|(x, y)| 0.5 * f64::from(*x) - 2.0 * f64::from(*y)).collect();
        Case {
            file: "elementwise",
            arch: "80",
            steps: vec![step],
            buffers,
            wanted: vec![(1, As::Bf16, want, 4e-3)],
        }
    });
    check(|| {
        let (rows, cols, blocks) = (130, 75, 3);
        let mut random = Random::new(3);
        let (x, y) = (random.values(rows * cols), random.values(rows * cols));
        let buffers =
            vec![Buffer::of_f32(&x), Buffer::of_f32(&y), Buffer::unwritten(8 * blocks), Buffer::unwritten(4)];
        let head = Arguments::default().at(&buffers[2]).at(&buffers[3]).i32s(&[1, blocks as i32]);
        let arguments =
            head.matrix(&buffers[0], rows, cols).absent(31).matrix(&buffers[1], rows, cols).absent(31);
        let step = |kernel: &str, blocks: usize, threads, shared| Step {
            kernel: kernel.into(),
            grid: [blocks as u32, 1, 1],
            block: [threads, 1, 1],
            shared,
            arguments: arguments.clone(),
        };
        let want = x.iter().zip(&y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
        let steps = vec![step("dots", blocks, 256, 256), step("dots_sum", 1, 32, 0)];
        Case { file: "dots", arch: "80", steps, buffers, wanted: vec![(3, As::F32, vec![want], 1e-6)] }
    });
}

#[test]
fn cross_entropy() {
    check(|| {
        let (rows, cols) = (5, 1000);
        let x = Random::new(7).values(rows * cols);
        let targets: Vec<u32> = (0..rows as u32).map(|r| r * 37).collect();
        let nothing = |n: usize| Buffer::unwritten(n * 4);
        let buffers = vec![
            Buffer::of_f32(&x),
            nothing(rows * cols),
            Buffer::of_f32(&vec![0.5; rows]),
            nothing(rows),
            Buffer::of_u32(&targets),
        ];
        let a = Arguments::default().matrix(&buffers[0], rows, cols).matrix(&buffers[1], rows, cols).matrix(
            &buffers[2],
            rows,
            1,
        );
        let arguments = a.matrix(&buffers[3], rows, 1).at(&buffers[4]).f32(2.0).i32(0);
        let (mut loss, mut gradient) = (Vec::new(), Vec::new());
        for r in 0..rows {
            let row = f64s(&x[r * cols..][..cols]);
            let sum: f64 = row.iter().map(|v| v.exp()).sum();
            loss.push(sum.ln() - row[r * 37]);
            gradient.extend((0..cols).map(|j| row[j].exp() / sum - f64::from(u8::from(j == r * 37))));
        }
        let step = Step {
            kernel: "cross_entropy_f32".into(),
            grid: [rows as u32, 1, 1],
            block: [256, 1, 1],
            shared: 256,
            arguments,
        };
        let wanted = vec![(3, As::F32, loss, 1e-6), (1, As::F32, gradient, 1e-6)];
        Case { file: "cross_entropy", arch: "80", steps: vec![step], buffers, wanted }
    });
}

#[test]
fn rmsnorm_of_warps_and_of_blocks() {
    for (rows, cols, block) in [(11, 200, [32, 8, 1]), (3, 2100, [256, 1, 1])] {
        check(|| {
            let mut random = Random::new(8);
            let (x, w) = (random.values(rows * cols), random.values(cols));
            let buffers = vec![
                Buffer::of_bf16(&x),
                Buffer::of_bf16(&w),
                Buffer::unwritten(rows * cols * 2),
                Buffer::unwritten(rows * 4),
            ];
            let a =
                Arguments::default().matrix(&buffers[0], rows, cols).absent(2).matrix(&buffers[1], 1, cols);
            let arguments = a.matrix(&buffers[2], rows, cols).matrix(&buffers[3], rows, 1).f32(1e-6).i32(0);
            let mut want = Vec::new();
            for r in 0..rows {
                let row = f64s(&x[r * cols..][..cols]);
                let scale = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / cols as f64 + 1e-6).sqrt();
                want.extend((0..cols).map(|j| row[j] * scale * f64::from(w[j])));
            }
            let grid = [(rows as u32).div_ceil(block[1]), 1, 1];
            let step = Step { kernel: "rmsnorm_bf16".into(), grid, block, shared: 128, arguments };
            Case {
                file: "rmsnorm",
                arch: "80",
                steps: vec![step],
                buffers,
                wanted: vec![(2, As::Bf16, want, 4e-3)],
            }
        });
    }
}

#[test]
fn products_on_tensor_cores() {
    for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
        for wide in [true, false] {
            check(|| matmul(&format!("matmul_tc_{}", letters(ta, tb, wide)), (136, 72, 72), ta, tb, wide));
        }
    }
    check(|| matmul("matmul_tc_nt_f32", (200, 136, 200), false, true, true));
}

#[test]
fn products_on_cuda_cores() {
    for (ta, tb) in [(false, true), (true, false)] {
        check(|| matmul("matmul_plain_bf16_bf16_f32", (67, 65, 41), ta, tb, true));
        check(|| matmul("matmul_plain_bf16_bf16_bf16", (67, 65, 41), ta, tb, false));
    }
}

#[test]
fn adapted_linears_wait_for_their_branch() {
    for tb in [true, false] {
        check(|| linear_tc((200, 136, 72), 24, tb));
        check(|| linear_tc((129, 264, 40), 72, tb));
    }
}

#[test]
fn hopper_products() {
    for (ta, tb, wide) in [
        (false, false, false),
        (false, false, true),
        (false, true, false),
        (false, true, true),
        (true, false, true),
    ] {
        check(|| hopper((200, 136, 72), ta, tb, wide, 128));
        check(|| hopper((136, 264, 200), ta, tb, wide, 256));
        check(|| hopper((72, 328, 64), ta, tb, wide, 256));
    }
}

#[test]
fn hopper_linears_wait_for_their_branch() {
    for transposed in [true, false] {
        check(|| hopper_linear((200, 136, 72), &Branch { rank: 24, transposed }, 128));
        check(|| hopper_linear((264, 264, 136), &Branch { rank: 72, transposed }, 256));
        check(|| hopper_linear((1100, 136, 64), &Branch { rank: 136, transposed }, 256));
    }
}

#[test]
fn weight_gradients_add_their_runs() {
    check(|| weight_grad((200, 136, 72), 1));
    check(|| weight_grad((300, 264, 72), 3));
}

#[test]
fn attention_of_two_sequences() {
    check(|| attention(64, true));
    check(|| attention(40, false));
    check(|| attention(128, true));
}

#[test]
fn adam_adds_its_blocks() {
    check(|| adam(70, 33));
}

/// Every entry of every kernel file, for both architectures: a minute of nvcc, once.
#[test]
fn every_kernel_is_modelled() {
    let files =
        super::rig::root().join("kernels").read_dir().expect("kernels/").filter_map(|e| Some(e.ok()?.path()));
    let mut entries = 0;
    for file in files.filter(|p| p.extension().is_some_and(|e| e == "cu")) {
        let stem = file.file_stem().and_then(|s| s.to_str()).expect("a name");
        for arch in ["80", "90a"].into_iter().filter(|a| !stem.contains("_sm") || stem.ends_with(a)) {
            let Some(text) = ptx(stem, arch) else { return };
            let module =
                gems_witness::parse::Module::parse(&text).unwrap_or_else(|e| panic!("{stem}, {arch}: {e}"));
            for entry in &module.entries {
                program(&text, &entry.name).unwrap_or_else(|e| panic!("{stem}, {arch}, {}: {e}", entry.name));
                entries += 1;
            }
        }
    }
    assert!(entries > 140, "{entries} entries");
}
