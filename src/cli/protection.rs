//! What is protected in each layer under the present settings, and what is left: told by `basis`, `train` and `doctor`, drawn
//! by reports.

use crate::gems::{Knowledge, Protection, Space, Spectrum};
use crate::layers::Site;
use serde::Serialize;
use serde_json::{Value, json};

/// One input (or output) of one or more layers.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The first layer that has it.
    pub layer: String,
    /// What its layers do.
    pub serves: Vec<&'static str>,
    /// n.
    pub dimensions: usize,
    /// Vectors that the second moment was taken over.
    pub samples: usize,
    /// Directions that the basis keeps, and the share of the energy in them.
    pub kept: usize,
    pub kept_energy: f64,
    /// Directions that are protected, and the share of the energy in them.
    pub protected: usize,
    pub energy: f64,
    /// Directions that the settings ask for.
    pub wanted: usize,
    /// Directions that are left to the subspaces, and the share of the energy in them.
    pub free: usize,
    pub free_energy: f64,
}

impl Row {
    fn of(spectrum: &Spectrum, space: Option<&Space>, serves: Vec<&'static str>) -> Self {
        let (protected, wanted) = space.map_or((0, 0), |s| (s.kept(), s.wanted));
        let energy = spectrum.energy(protected);
        Self {
            layer: spectrum.name.clone(),
            serves,
            dimensions: spectrum.dim,
            samples: spectrum.samples,
            kept: spectrum.kept(),
            kept_energy: spectrum.energy(spectrum.kept()),
            protected,
            energy,
            wanted,
            free: spectrum.dim - protected,
            free_energy: 1.0 - energy,
        }
    }
}

/// All that is known of a model's layers, and what of it is protected.
#[derive(Debug, Serialize)]
pub struct Protected {
    /// By input, or by output where that is the protected side; the final hidden states last.
    pub spaces: Vec<Row>,
    /// Layers in all, adapted ones, and those of these of which nothing is protected.
    pub layers: usize,
    pub adapted: usize,
    pub unprotected: usize,
}

impl Protected {
    /// Under `protection`; `rooms` says which layers are adapted.
    pub fn of(
        knowledge: &Knowledge,
        protection: &Protection,
        sites: &[Site],
        rooms: &[Option<usize>],
    ) -> Self {
        let mut spaces = Vec::new();
        for (number, spectrum) in knowledge.inputs.iter().enumerate() {
            let of = |site: &usize| knowledge.input_of_site.get(*site) == Some(&Some(number));
            let all: Vec<usize> = (0..sites.len()).filter(of).collect();
            let cut =
                all.iter().filter_map(|s| protection.space(*s)).find(|s| std::ptr::eq(s.spectrum, spectrum));
            let serves = all.iter().map(|s| sites[*s].projection.name()).collect();
            spaces.push(Row::of(spectrum, cut, serves));
        }
        for (site, spectrum) in knowledge.outputs.iter().enumerate() {
            let Some(spectrum) = spectrum else { continue };
            let cut = protection.space(site).filter(|s| std::ptr::eq(s.spectrum, spectrum));
            let serves = sites.get(site).map(|s| s.projection.name()).into_iter().collect();
            spaces.push(Row::of(spectrum, cut, serves));
        }
        let hidden = knowledge.hidden.as_ref();
        spaces.extend(hidden.map(|s| Row::of(s, protection.item_rows.as_ref(), vec!["item rows"])));
        let adapted = rooms.iter().filter(|r| r.is_some()).count();
        let open = |site: &usize| protection.space(*site).is_none_or(|s| s.kept() == 0);
        let unprotected = (0..sites.len()).filter(|s| rooms[*s].is_some()).filter(open).count();
        Self { spaces, layers: sites.len(), adapted, unprotected }
    }

    /// As a table.
    pub fn table(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
        table.set_header([
            "layer",
            "for",
            "dimensions",
            "kept (energy)",
            "protected (energy)",
            "left (energy)",
        ]);
        for row in &self.spaces {
            let share = |count: usize, energy: f64| format!("{count} ({:.1} %)", 100.0 * energy);
            table.add_row([
                row.layer.clone(),
                row.serves.join(" "),
                row.dimensions.to_string(),
                share(row.kept, row.kept_energy),
                share(row.protected, row.energy),
                share(row.free, row.free_energy),
            ]);
        }
        table.to_string()
    }

    /// What a user should know: too few directions kept, too few vectors, layers without protection. `protects`: whether
    /// the settings ask for any.
    pub fn warnings(&self, protects: bool) -> Vec<String> {
        let mut all = Vec::new();
        let names = |rows: &[&Row]| {
            let first: Vec<&str> = rows.iter().take(3).map(|r| r.layer.as_str()).collect();
            if rows.len() > 3 { format!("{}, ...", first.join(", ")) } else { first.join(", ") }
        };
        let short: Vec<&Row> = self.spaces.iter().filter(|r| r.wanted > r.kept).collect();
        if !short.is_empty() {
            let least = short.iter().map(|r| r.kept_energy).fold(1.0, f64::min);
            all.push(format!(
                "{} of {} inputs or outputs ({}) keep fewer directions than null_space.value asks for: at least {:.1} % of \
                 the energy is protected; keep more with null_space.directions, or ask for less",
                short.len(),
                self.spaces.len(),
                names(&short),
                100.0 * least
            ));
        }
        let thin: Vec<&Row> = self.spaces.iter().filter(|r| r.samples < r.dimensions).collect();
        if !thin.is_empty() {
            all.push(format!(
                "{} of {} inputs or outputs ({}) have more dimensions than vectors were seen: what is not in the text is \
                 not protected; use more general text (null_space.tokens)",
                thin.len(),
                self.spaces.len(),
                names(&thin)
            ));
        }
        if protects && self.unprotected > 0 {
            let share = 100.0 * self.unprotected as f64 / self.adapted.max(1) as f64;
            all.push(format!(
                "{} of {} adapted layers ({share:.0} %) have nothing protected: their subspaces leave no room, or their \
                 spectrum nothing to protect (see null_space.room, gems.rank, null_space.value)",
                self.unprotected, self.adapted
            ));
        }
        all
    }
}

/// Points of a curve at most, cut apart.
const POINTS: usize = 24;

/// The energy that the leading directions hold, as curves for a page, one for all inputs that serve the same:
/// `{"name": .., "points": [[directions, share] ..], "cut": directions or null}`, means over their layers.
pub fn spectra(knowledge: &Knowledge, protection: &Protection, sites: &[Site]) -> Vec<Value> {
    let serves = |number: usize| -> Vec<&str> {
        let of = |site: &usize| knowledge.input_of_site.get(*site) == Some(&Some(number));
        (0..sites.len()).filter(of).map(|site| sites[site].projection.name()).collect()
    };
    let mut kinds: Vec<(String, Vec<&Spectrum>)> = Vec::new();
    let inputs = knowledge.inputs.iter().enumerate().map(|(number, s)| (serves(number).join(" "), s));
    for (name, spectrum) in inputs.chain(knowledge.hidden.iter().map(|s| ("item rows".to_string(), s))) {
        match kinds.iter_mut().find(|(known, _)| *known == name) {
            Some((_, all)) => all.push(spectrum),
            None => kinds.push((name, vec![spectrum])),
        }
    }
    let spaces = || protection.spaces.iter().chain(&protection.item_rows);
    let curve = |(name, all): &(String, Vec<&Spectrum>)| {
        let cuts: Vec<usize> = all
            .iter()
            .filter_map(|s| spaces().find(|space| std::ptr::eq(space.spectrum, *s)))
            .map(Space::kept)
            .collect();
        let cut = (!cuts.is_empty()).then(|| cuts.iter().sum::<usize>().div_ceil(cuts.len()));
        let kept = all.iter().map(|s| s.kept()).min().unwrap_or(0);
        let mean = |k: usize| all.iter().map(|s| s.energy(k)).sum::<f64>() / all.len() as f64;
        let spread = (0..POINTS).map(|i| (kept as f64).powf(i as f64 / (POINTS - 1) as f64).round() as usize);
        let mut at: Vec<usize> = spread.chain(cut).filter(|k| (1..=kept).contains(k)).collect();
        at.sort_unstable();
        at.dedup();
        let points: Vec<(usize, f64)> = at.into_iter().map(|k| (k, (mean(k) * 1e4).round() / 1e4)).collect();
        json!({"name": name, "points": points, "cut": cut.filter(|k| *k > 0)})
    };
    kinds.iter().map(curve).filter(|kind| kind["points"].as_array().is_some_and(|p| p.len() > 1)).collect()
}
