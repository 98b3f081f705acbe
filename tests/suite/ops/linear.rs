//! The linear layer with its low-rank branch.

use super::*;
use cases::Run;
use gems_engine::error::Result;

/// Tokens, inputs, outputs, rank; no branch for rank 0.
type Size = (usize, usize, usize, usize);

fn layer(on: &Inputs, (_, n, m, r): Size, bias: bool) -> AdaptedLinear {
    let branch = (r > 0).then(|| Branch { a: on.compute(3, r, n), b: on.compute(4, m, r) });
    AdaptedLinear { weight: on.compute(1, m, n).into(), bias: bias.then(|| on.compute(2, 1, m)), branch }
}

pub fn forward(size: Size, bias: bool) -> Case {
    let (t, n, m, r) = size;
    Case::new(format!("linear {t}x{n}->{m}, rank {r}"), move |on| {
        let (layer, x) = (layer(on, size, bias), on.compute(5, t, n));
        Prepared::new([("h", on.unwritten(t, r)), ("y", on.unwritten(t, m))], move |[h, y], run| {
            run(Linear { layer: &layer, x: x.mat(), h: (r > 0).then_some(h), y }.into())
        })
    })
}

pub fn input_grad(size: Size, accumulate: bool) -> Case {
    let (t, n, m, r) = size;
    Case::new(format!("linear gradient {t}x{n}->{m}, rank {r}"), move |on| {
        let (layer, dy) = (layer(on, size, false), on.compute(6, t, m));
        let dx = if accumulate { on.added_to(7, t, n) } else { on.unwritten(t, n) };
        Prepared::new([("z", on.unwritten(t, r)), ("dx", dx)], move |[z, dx], run| {
            run(LinearInputGrad { layer: &layer, dy: dy.mat(), z: (r > 0).then_some(z), dx, accumulate }
                .into())
        })
    })
}

/// `to = from W + (from A) B`, each by itself.
fn apart([mut side, mut to]: [MatMut; 2], [from, w, a, b]: [Operand; 4], run: Run) -> Result<()> {
    run(Matmul { c: to.reborrow(), beta: 0.0, alpha: 1.0, a: from, b: w }.into())?;
    run(Matmul { c: side.reborrow(), beta: 0.0, alpha: 1.0, a: from, b: a }.into())?;
    run(Matmul { c: to, beta: 1.0, alpha: 1.0, a: side.as_mat().n(), b }.into())
}

/// [`forward`] without a bias as three products.
pub fn forward_apart(size: Size) -> Case {
    let (t, n, m, r) = size;
    Case::new(format!("three products {t}x{n}->{m}, rank {r}"), move |on| {
        let (layer, x) = (layer(on, size, false), on.compute(5, t, n));
        Prepared::new([("h", on.unwritten(t, r)), ("y", on.unwritten(t, m))], move |outputs, run| {
            let Branch { a, b } = layer.branch.as_ref().expect("a rank");
            apart(outputs, [x.mat().n(), layer.weight.mat().t(), a.mat().t(), b.mat().t()], run)
        })
    })
}

/// [`input_grad`] as three products.
pub fn input_grad_apart(size: Size) -> Case {
    let (t, n, m, r) = size;
    Case::new(format!("three products {t}x{m}->{n}, rank {r}"), move |on| {
        let (layer, dy) = (layer(on, size, false), on.compute(6, t, m));
        Prepared::new([("z", on.unwritten(t, r)), ("dx", on.unwritten(t, n))], move |outputs, run| {
            let Branch { a, b } = layer.branch.as_ref().expect("a rank");
            apart(outputs, [dy.mat().n(), layer.weight.mat().n(), b.mat().n(), a.mat().n()], run)
        })
    })
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    let mut all = Vec::new();
    for (name, m, n) in s.linear_layers() {
        let size = (s.tokens, n, m, s.rank);
        let shape = format!("{name} {}x{n}->{m}", s.tokens);
        let timed = |name: String, case: Case, apart| Timed { case: case.named(name), unfused: Some(apart) };
        all.push(timed(format!("linear {shape}"), forward(size, false), forward_apart(size)));
        all.push(timed(format!("linear gradient {shape}"), input_grad(size, false), input_grad_apart(size)));
    }
    all
}

const SIZES: [Size; 6] = [
    (37, 40, 72, 16),
    (5, 24, 136, 7),
    (1, 8, 8, 0),
    (150, 200, 272, 136),
    (260, 72, 136, 24),
    (129, 8, 264, 8),
];

#[test]
fn adapted_linear_and_its_input_gradient() {
    for size in SIZES {
        parity(forward(size, true));
        parity(input_grad(size, true));
    }
}

/// The branch's tiles and the tiles that wait for them, with one and with two column tiles of each.
#[test]
fn adapted_linear_on_hopper() {
    let be = hopper();
    for size in [(37, 40, 72, 16), (150, 200, 272, 136), (260, 328, 136, 24), (5, 264, 8, 8)] {
        parity_on(&*be, &forward(size, true));
        parity_on(&*be, &input_grad(size, true));
    }
}
