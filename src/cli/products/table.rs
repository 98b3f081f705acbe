//! The products of layers as a table, and what is to be said about them.

use super::{LayerProduct, LayerProducts};
use comfy_table::{Table, presets};

/// The products as text: a row a shape of layer, then why.
pub fn text(all: &[LayerProducts]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["layers", "weights", "rank", "rows", "forward", "input gradient", "fold, new rows"]);
    let none = || "-".to_string();
    for l in all {
        table.add_row([
            format!("{} ({})", l.layers.join(", "), l.count),
            format!("{} x {}", l.outputs, l.inputs),
            if l.rank > 0 { l.rank.to_string() } else { none() },
            l.rows.to_string(),
            kernels(&l.forward),
            kernels(&l.input_gradient),
            l.weights.as_ref().map_or_else(none, kernels),
        ]);
    }
    let why = match &reasons(all, |_| true)[..] {
        [(why, _)] => vec![format!("all: {why}")],
        several => several.iter().map(|(why, products)| format!("{products}: {why}")).collect(),
    };
    format!("{table}\n{}", why.join("\n"))
}

/// What runs without tensor cores and why; `None` when nothing does.
pub fn slow(all: &[LayerProducts]) -> Option<String> {
    let slow = reasons(all, |p| p.slow);
    let say = |(why, products): &(String, String)| format!("{products}: {why}");
    (!slow.is_empty()).then(|| slow.iter().map(say).collect::<Vec<_>>().join("; "))
}

/// Kernels in order, runs of the same one counted.
fn kernels(product: &LayerProduct) -> String {
    let runs = product.kernels.chunk_by(|a, b| a == b);
    let say = |run: &[String]| match run.len() {
        1 => run[0].clone(),
        n => format!("{n} x {}", run[0]),
    };
    runs.map(say).collect::<Vec<_>>().join(", ")
}

/// Every reason among the products to keep, and those that have it, such as `forward of q, k; fold of q`.
fn reasons(all: &[LayerProducts], keep: impl Fn(&LayerProduct) -> bool) -> Vec<(String, String)> {
    let products = all.iter().flat_map(|l| l.products().map(move |(name, p)| (l, name, p)));
    let kept = products.filter(|(_, _, p)| keep(p));
    let reasons =
        kept.flat_map(|(l, name, p)| l.layers.iter().map(move |layer| (p.why.clone(), (name, *layer))));
    let say = |products: Vec<(&str, &str)>| {
        let of_name = |(name, layers): (&str, Vec<&str>)| format!("{name} of {}", layers.join(", "));
        grouped(products).into_iter().map(of_name).collect::<Vec<_>>().join("; ")
    };
    grouped(reasons).into_iter().map(|(why, products)| (why, say(products))).collect()
}

/// Distinct values by key, both in the order in which they come.
pub fn grouped<K: PartialEq, V: PartialEq>(pairs: impl IntoIterator<Item = (K, V)>) -> Vec<(K, Vec<V>)> {
    let mut groups: Vec<(K, Vec<V>)> = Vec::new();
    for (key, value) in pairs {
        match groups.iter_mut().find(|(k, _)| *k == key) {
            Some((_, values)) if values.contains(&value) => {}
            Some((_, values)) => values.push(value),
            None => groups.push((key, vec![value])),
        }
    }
    groups
}
