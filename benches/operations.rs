//! Every operation of the `Backend` trait on shapes of a 60 M-weight model, each beside its floor.
//!
//! A case says in numbers what the operation must move (bytes) and compute (flops). Its floor is the larger of
//! bytes over the bandwidth and flops over the speed that this run measured first: of a copy that does not fit the
//! caches, and of a large square product. After criterion's lines a table shows the share of the floor reached.

mod shapes;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gems_engine::backend::{
    Activation, AdamBlock, AdamUpdate, AdaptedLinear, Attention, Backend, Branch, DType, HeadGradient, Mask,
    Op, OuterPart, Rounding, RowGroups, Tensor,
};
use gems_engine::random::{Purpose, normal};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens, width, feed-forward width, rank, heads, labels, vocabulary.
const T: usize = 1024;
const D: usize = 640;
const F: usize = 1728;
const R: usize = 32;
const H: usize = 10;
const L: usize = 48;
const V: usize = 16384;
/// Tokens of a sequence.
const N: usize = 64;

struct Case<'a> {
    name: &'static str,
    bytes: f64,
    flops: f64,
    run: Box<dyn FnMut() + 'a>,
}

/// Tensors by role; each operation takes what it needs.
struct Bench {
    be: Arc<dyn Backend>,
    e: f64,
}

impl Bench {
    fn tensor(&self, rows: usize, cols: usize, dtype: DType) -> Tensor {
        let values = normal(1, Purpose::Data, rows as u64, cols as u64, rows * cols);
        self.be.tensor(&values, rows, cols, dtype).expect("memory")
    }
    /// In compute type.
    fn c(&self, rows: usize, cols: usize) -> Tensor {
        self.tensor(rows, cols, self.be.compute_dtype())
    }
    /// In f32.
    fn f(&self, rows: usize, cols: usize) -> Tensor {
        self.tensor(rows, cols, DType::F32)
    }
    fn case<'a>(
        &self,
        name: &'static str,
        elements: usize,
        flops: usize,
        run: impl FnMut() + 'a,
    ) -> Case<'a> {
        Case { name, bytes: self.e * elements as f64, flops: flops as f64, run: Box::new(run) }
    }
    fn layer(&self, m: usize, n: usize) -> AdaptedLinear {
        let branch = Some(Branch { a: self.c(R, n), b: self.c(m, R) });
        AdaptedLinear { weight: self.c(m, n), bias: None, branch }
    }

    fn products(&self) -> Vec<Case<'_>> {
        let be = &self.be;
        let (x, mut y, mut h, layer) = (self.c(T, D), self.c(T, F), self.c(T, R), self.layer(F, D));
        let (dy, mut z, mut dx, back) = (self.c(T, F), self.c(T, R), self.c(T, D), self.layer(F, D));
        let (oy, oh, mut out) = (self.c(T, F), self.c(T, R), self.f(F, R + R / 2));
        let (a, w, mut p) = (self.c(T, D), self.c(F, D), self.c(T, F));
        let linear = (T * D + T * F + F * D + R * (D + F + T), 2 * T * (D * F + R * (D + F)));
        let parts = [
            OuterPart { rows: 0..T, columns: 0..R / 2, to: 0, scale: 1.0 },
            OuterPart { rows: 0..T / 2, columns: R / 2..R * 3 / 4, to: R / 2, scale: 1.0 },
            OuterPart { rows: T / 2..T, columns: R * 3 / 4..R, to: R * 3 / 4, scale: 1.0 },
        ];
        vec![
            self.case("matmul", T * D + F * D + T * F, 2 * T * D * F, move || {
                be.matmul(p.mat_mut(), 0.0, 1.0, a.mat(), Op::N, w.mat(), Op::T).unwrap();
            }),
            self.case("linear, adapted", linear.0, linear.1, move || {
                be.linear(&layer, x.mat(), Some(h.mat_mut()), y.mat_mut()).unwrap();
            }),
            self.case("linear input gradient", linear.0, linear.1, move || {
                be.linear_input_gradient(&back, dy.mat(), Some(z.mat_mut()), dx.mat_mut(), false).unwrap();
            }),
            self.case("outer", T * F + T * R + F * R, 2 * T * F * (R / 2) + T * F * (R / 2), move || {
                be.outer(oy.mat(), oh.mat(), &parts, out.mat_mut()).unwrap();
            }),
        ]
    }

    fn rows(&self) -> Vec<Case<'_>> {
        let be = &self.be;
        let ids: Vec<u32> = (0..T as u32).map(|i| (i * 7919) % V as u32).collect();
        let tokens = be.indices(&ids).unwrap();
        let again = be.indices(&ids).unwrap();
        let groups =
            RowGroups::new(be.as_ref(), ids.iter().enumerate().map(|(i, t)| (*t, i as u32))).unwrap();
        let (table, table2) = (self.c(V, D), self.c(V, D));
        let (mut e, mut g, s, mut sum) = (self.c(T, D), self.c(T, D), self.c(T, D), self.f(V, D));
        let (x, r, mut t, mut y, w) = (self.c(T, D), self.c(T, D), self.c(T, D), self.c(T, D), self.c(1, D));
        let mut inv = self.f(T, 1);
        let (bs, bw, bi, bdy, mut bdx) =
            (self.c(T, D), self.c(1, D), self.f(T, 1), self.c(T, D), self.c(T, D));
        let (mut q, positions) = (self.c(T, D), be.indices(&(0..T as u32).collect::<Vec<_>>()).unwrap());
        let frequencies = self.f(1, D / H / 2);
        let (gate, up, mut act) = (self.c(T, F), self.c(T, F), self.c(T, F));
        let (gate2, up2, da, mut dg, mut du) =
            (self.c(T, F), self.c(T, F), self.c(T, F), self.c(T, F), self.c(T, F));
        let (dy, mut columns) = (self.c(T, D), self.f(2, D));
        let (ax, mut ay, mut sx) = (self.c(T, D), self.c(T, D), self.c(T, D));
        let (from, mut to, mut filled) = (self.c(T, D), self.c(T, D), self.c(T, D));
        let host = vec![0.5f32; T * D];
        let (mut uploaded, downloaded) = (self.c(T, D), self.c(T, D));
        let td = T * D;
        vec![
            self.case("upload", td, 0, move || be.upload(&host, uploaded.mat_mut()).unwrap()),
            self.case("download", td, 0, move || drop(be.download(downloaded.mat()).unwrap())),
            self.case("copy", 2 * td, 0, move || be.copy(from.mat(), to.mat_mut()).unwrap()),
            self.case("fill", td, 0, move || be.fill(filled.mat_mut(), 0.0).unwrap()),
            self.case("axpy", 3 * td, 2 * td, move || be.axpy(0.5, ax.mat(), ay.mat_mut()).unwrap()),
            self.case("scale", 2 * td, td, move || be.scale(sx.mat_mut(), 1.0).unwrap()),
            self.case("embed", 2 * td, 0, move || be.embed(table.mat(), &tokens, 1.0, e.mat_mut()).unwrap()),
            self.case("gather rows", 2 * td, 0, move || {
                be.gather_rows(table2.mat(), &again, g.mat_mut()).unwrap();
            }),
            self.case("scatter-add rows", 3 * td, td, move || {
                be.scatter_add_rows(s.mat(), &groups, 1.0, 0, sum.mat_mut()).unwrap();
            }),
            self.case("rmsnorm, residual", 4 * td, 5 * td, move || {
                let residual = Some((r.mat(), t.mat_mut()));
                be.rmsnorm(x.mat(), residual, w.mat(), 1e-6, y.mat_mut(), inv.mat_mut()).unwrap();
            }),
            self.case("rmsnorm backward", 4 * td, 8 * td, move || {
                let (s, w, inv) = (bs.mat(), bw.mat(), bi.mat());
                be.rmsnorm_backward(s, w, inv, bdy.mat(), bdx.mat_mut(), true, None).unwrap();
            }),
            self.case("rope", 2 * td, 3 * td, move || {
                be.rope(q.mat_mut(), &positions, frequencies.mat(), H, false).unwrap();
            }),
            self.case("activation", 3 * T * F, 5 * T * F, move || {
                be.activation(Activation::Silu, gate.mat(), Some(up.mat()), act.mat_mut()).unwrap();
            }),
            self.case("activation backward", 5 * T * F, 10 * T * F, move || {
                let (g, u) = (gate2.mat(), Some(up2.mat()));
                be.activation_backward(Activation::Silu, g, u, da.mat(), dg.mat_mut(), Some(du.mat_mut()))
                    .unwrap();
            }),
            self.case("column sums", td, td, move || {
                be.column_sums(dy.mat(), &[0..T / 2, T / 2..T], columns.mat_mut()).unwrap();
            }),
        ]
    }

    fn attention(&self) -> Vec<Case<'_>> {
        let be = &self.be;
        let all = || (self.c(T, D), self.c(T, D), self.c(T, D), self.c(T, D), self.f(T, H));
        let offsets = |()| be.indices(&(0..=T / N).map(|s| (s * N) as u32).collect::<Vec<_>>()).unwrap();
        // A causal row sees half of its sequence; scores and values are a product each, five of them backwards.
        let pairs = T * N.div_ceil(2) * D;
        let (o1, o2) = (offsets(()), offsets(()));
        fn spec(offsets: &gems_engine::backend::Indices) -> Attention<'_> {
            Attention {
                q_offsets: offsets,
                k_offsets: offsets,
                heads: H,
                kv_heads: H,
                head_dim: D / H,
                scale: 0.125,
                mask: Mask::Causal,
                bias: None,
            }
        }
        let (q, k, v, mut out, mut lse) = all();
        let (q2, k2, v2, mut out2, mut lse2) = all();
        be.attention(&spec(&o2), q2.mat(), k2.mat(), v2.mat(), out2.mat_mut(), lse2.mat_mut()).unwrap();
        let (dout, mut dq, mut dk, mut dv, _) = all();
        vec![
            self.case("attention", 4 * T * D, 4 * pairs, move || {
                be.attention(&spec(&o1), q.mat(), k.mat(), v.mat(), out.mat_mut(), lse.mat_mut()).unwrap();
            }),
            self.case("attention backward", 8 * T * D, 10 * pairs, move || {
                let (q, k, v, out, lse) = (q2.mat(), k2.mat(), v2.mat(), out2.mat(), lse2.mat());
                let (dq, dk, dv) = (dq.mat_mut(), dk.mat_mut(), dv.mat_mut());
                be.attention_backward(&spec(&o2), q, k, v, out, lse, dout.mat(), dq, dk, dv, None).unwrap();
            }),
        ]
    }

    fn loss(&self) -> Vec<Case<'_>> {
        let be = &self.be;
        let (x, head, weights) = (self.c(L, D), self.c(V, D), self.f(L, 1));
        let (mut nll, mut dx, mut dhead) = (self.f(L, 1), self.c(L, D), self.f(V / 4, D));
        let targets = be.indices(&(0..L as u32).collect::<Vec<_>>()).unwrap();
        let flops = 4 * L * V * D + 2 * L * (V / 4) * D;
        vec![self.case("cross entropy, gradients", 2 * V * D + 2 * (V / 4) * D, flops, move || {
            let gradient = HeadGradient { first_row: V - V / 4, segments: &[0..L], out: dhead.mat_mut() };
            let (nll, dx) = (nll.mat_mut(), Some(dx.mat_mut()));
            be.cross_entropy(x.mat(), head.mat(), 1.0, &targets, weights.mat(), nll, dx, Some(gradient))
                .unwrap();
        })]
    }

    fn method(&self) -> Vec<Case<'_>> {
        let be = &self.be;
        let (a, b, mut dot) = (self.f(F, R), self.f(F, R), self.f(1, 70));
        let (mut x, g, mut m, mut v) = (self.f(F, R), self.f(F, R), self.f(F, R), self.f(F, R));
        be.fill(v.mat_mut(), 1.0).unwrap();
        let block = AdamBlock {
            columns: 0..R,
            from: 0,
            terms: 1,
            stride: 0,
            gate: None,
            beta1: 0.9,
            beta2: 0.999,
            step: 1e-3,
            sqrt_correction2: 1.0,
            eps: 1e-8,
            keep_before: 1.0,
            keep_after: 1.0,
            grad_scale: 1.0,
        };
        let k = D / 4;
        let (mut px, pk, mut pc, ck) = (self.f(R, D), self.f(D, k), self.f(D, R), self.f(D, k));
        let (mut w, fb, fa, mut rows) = (self.c(F, D), self.f(F, R), self.f(R, D), self.f(R, D));
        let (sketch, mut grams) = (self.f(R, D), (0..48).map(|_| self.f(R, R)).collect::<Vec<_>>());
        let projected = (2 * R * D + k * D, 4 * R * D * k);
        vec![
            self.case("dots, 70 pairs", 70 * 2 * F * R, 70 * 2 * F * R, move || {
                let pairs: Vec<_> = (0..70).map(|_| (a.mat(), b.mat())).collect();
                be.dots(&pairs, dot.mat_mut()).unwrap();
            }),
            self.case("adam", 7 * F * R, 12 * F * R, move || {
                let (x, m, v) = (x.mat_mut(), m.mat_mut(), v.mat_mut());
                let (blocks, copy, change) = (vec![block.clone()], None, None);
                let update = AdamUpdate { x, g: g.mat(), m, v, blocks, copy, change };
                be.adam(vec![update], None, None).unwrap();
            }),
            self.case("project rows", projected.0, projected.1, move || {
                be.scale(px.mat_mut(), 1e-3).unwrap();
                be.project_rows(px.mat_mut(), pk.mat()).unwrap();
            }),
            self.case("project columns", projected.0, projected.1, move || {
                be.scale(pc.mat_mut(), 1e-3).unwrap();
                be.project_columns(pc.mat_mut(), ck.mat()).unwrap();
            }),
            self.case("fold", 2 * F * D + R * (F + D), 2 * F * D * R, move || {
                be.fold(w.mat_mut(), 1.0, 1e-6, fb.mat(), fa.mat(), Rounding::Nearest).unwrap();
            }),
            self.case("orthonormalize rows", 2 * R * D, 4 * R * R * D, move || {
                be.orthonormalize_rows(&mut [rows.mat_mut()]).unwrap();
            }),
            self.case("matmul many, 48 of R x R x D", 48 * (2 * D + R) * R, 48 * 2 * R * R * D, move || {
                let sketch = sketch.mat();
                let products = grams.iter_mut().map(|gram| (gram.mat_mut(), sketch, sketch));
                be.matmul_many(0.0, 1.0, Op::T, &mut products.collect::<Vec<_>>()).unwrap();
            }),
        ]
    }
}

/// Bytes a second of a copy of 64 MB, and flops a second of a product of 1024 x 1024 matrices; best of several.
fn speeds(bench: &Bench) -> (f64, f64) {
    let be = &bench.be;
    let best = |times: usize, mut run: Box<dyn FnMut() + '_>| {
        (0..times)
            .map(|_| {
                let start = Instant::now();
                run();
                be.synchronize().unwrap();
                start.elapsed().as_secs_f64()
            })
            .fold(f64::INFINITY, f64::min)
    };
    let (from, mut to) = (bench.c(16384, 1024), bench.c(16384, 1024));
    let bytes = 2.0 * bench.e * from.len() as f64;
    let copy = best(5, Box::new(|| be.copy(from.mat(), to.mat_mut()).unwrap()));
    let (a, b, mut c) = (bench.c(1024, 1024), bench.c(1024, 1024), bench.c(1024, 1024));
    let product =
        best(8, Box::new(|| be.matmul(c.mat_mut(), 0.0, 1.0, a.mat(), Op::N, b.mat(), Op::T).unwrap()));
    (bytes / copy, 2.0 * 1024f64.powi(3) / product)
}

fn operations(c: &mut Criterion) {
    let be = shapes::device();
    let e = be.compute_dtype().bytes() as f64;
    let bench = Bench { be, e };
    let (bandwidth, speed) = speeds(&bench);
    println!(
        "{}: copies at {:.1} GB/s, products at {:.1} GFLOP/s",
        bench.be.name(),
        bandwidth / 1e9,
        speed / 1e9
    );
    let mut group = c.benchmark_group("operations");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    let mut table = Vec::new();
    let all = [bench.products(), bench.rows(), bench.attention(), bench.loss(), bench.method()];
    for mut case in all.into_iter().flatten() {
        let least = RefCell::new(f64::INFINITY);
        group.throughput(Throughput::Bytes(case.bytes as u64));
        group.bench_function(case.name, |b| {
            b.iter_custom(|times| {
                let start = Instant::now();
                (0..times).for_each(|_| (case.run)());
                bench.be.synchronize().unwrap();
                let taken = start.elapsed();
                let each = taken.as_secs_f64() / times as f64;
                least.replace_with(|l| l.min(each));
                taken
            })
        });
        table.push((case.name, case.bytes, case.flops, least.into_inner()));
    }
    group.finish();
    println!("{:26}{:>10}{:>10}{:>10}{:>10}", "operation", "ms", "GB/s", "GFLOP/s", "of floor");
    for (name, bytes, flops, t) in table.into_iter().filter(|row| row.3.is_finite()) {
        let floor = (bytes / bandwidth).max(flops / speed);
        let (ms, gb, gf, share) = (t * 1e3, bytes / t / 1e9, flops / t / 1e9, 100.0 * floor / t);
        println!("{name:26}{ms:10.3}{gb:10.1}{gf:10.1}{share:9.0} %");
    }
}

criterion_group!(benches, operations);
criterion_main!(benches);
