//! Rows of a table: gathered, and added back to.

use super::*;

/// Rows of which some come twice.
fn ids(t: usize, table: usize) -> impl Iterator<Item = u32> + Clone {
    (0..t).map(move |i| ((i * 7 + i * i) % table) as u32)
}

pub fn gather(t: usize, table: usize, d: usize, scale: f32) -> Case {
    Case::new(format!("gather {t}x{d} of {table}"), move |on| {
        let (from, rows) = (on.compute(1, table, d), on.indices(ids(t, table)));
        Prepared::new([("rows", on.unwritten(t, d))], move |[to], run| {
            run(Gather { from: from.mat(), rows: &rows, scale, to }.into())
        })
    })
}

/// Without the table's first two rows.
pub fn scatter_add(t: usize, table: usize, d: usize) -> Case {
    Case::new(format!("scatter-add {t}x{d} to {table}"), move |on| {
        let from = on.compute(1, t, d);
        let groups = RowGroups::new(on.be, ids(t, table).zip(0..)).expect("memory");
        Prepared::new([("sums", on.added_to_f32(2, table - 2, d))], move |[to], run| {
            run(ScatterAdd { from: from.mat(), groups: &groups, scale: 0.5, first_row: 2, to }.into())
        })
    })
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    let (t, table, d) = (s.tokens, s.vocabulary, s.hidden);
    vec![gather(t, table, d, 1.0).into(), scatter_add(t, table, d).into()]
}

#[test]
fn rows_gather_and_scatter() {
    for (table, d) in [(5, 8), (40, 13), (300, 72)] {
        let t = 2 * table + 1;
        let (rows, from) = (exactly(1, table * d), exactly(1, t * d));
        for scale in [2.5, 1.0] {
            let gathered = ids(t, table).flat_map(|r| &rows[r as usize * d..(r as usize + 1) * d]);
            let scaled = gathered.map(|v| f64::from(scale) * v).collect();
            follows(&gather(t, table, d, scale), &[scaled]);
            parity(gather(t, table, d, scale));
        }
        let mut sums = exactly(2, (table - 2) * d);
        for (row, source) in ids(t, table).zip(0..).filter(|(row, _)| *row >= 2) {
            (0..d).for_each(|c| sums[(row as usize - 2) * d + c] += 0.5 * from[source * d + c]);
        }
        follows(&scatter_add(t, table, d), &[sums]);
        parity(scatter_add(t, table, d));
    }
}
