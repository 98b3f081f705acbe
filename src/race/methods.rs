//! What races: named sets of settings, each with learning rates and controls.

use crate::config::Layer;
use crate::error::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::Path;
use toml::{Table, Value};

const BUILT_IN: &str = include_str!("methods.toml");

/// The method that all others are held against: a learning rate, and nothing else.
pub const PLAIN: &str = "plain";

/// A named set of settings.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// Its name in commands, files and tables: letters, digits, `+`, `-`, `_`.
    pub name: String,
    /// What it does, in a few words.
    #[serde(default)]
    pub says: String,
    /// Learning rates, in multiples of `train.lr`.
    pub rates: Vec<f64>,
    /// The methods beside [`PLAIN`] that a claim for it must beat.
    #[serde(default)]
    pub controls: Vec<String>,
    /// Settings over those that all methods share.
    #[serde(default)]
    pub settings: Table,
}

/// All methods of a file, in its order; [`PLAIN`] is among them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Methods {
    /// Settings beneath every method.
    #[serde(default)]
    pub shared: Table,
    /// The methods.
    #[serde(rename = "method")]
    pub all: Vec<Method>,
}

/// Settings that a race sets itself, and why nobody else may; a section ends with a dot.
const OWNED: [(&str, &str); 13] = [
    ("seed", "give --seeds"),
    ("train.lr", "give --lr, or scale all grids with --set train.lr"),
    ("train.steps", "give --steps"),
    ("train.validate_every", "a race validates once, after the last step"),
    ("train.best_metric", "a race judges the last step"),
    ("train.patience", "all cells take all steps"),
    ("train.evaluate_before", "the base model is measured once"),
    ("train.evaluate_after", "every cell is measured"),
    ("train.export", "cells keep their results only"),
    ("train.match_step", "cells are matched in steps, data and seeds"),
    ("null_space.tokens", "a race has one basis: set it for all with --set"),
    ("null_space.gradient_tokens", "a race has one basis: set it for all with --set"),
    ("null_space.directions", "a race has one basis: set it for all with --set"),
];

/// Of [`OWNED`], what may be set for all methods, though by none of them.
const FOR_ALL: [&str; 4] =
    ["train.lr", "null_space.tokens", "null_space.gradient_tokens", "null_space.directions"];

impl Methods {
    /// Those in the file `path`, or those that come with the engine.
    ///
    /// # Errors
    /// A file that cannot be read; a name used twice or not usable, no `plain`, rates that are none, a control that
    /// there is not, settings that a race sets itself.
    pub fn read(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Self::parse(BUILT_IN, "the engine's methods") };
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read the methods", path, e))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// The methods of a TOML text called `place`.
    ///
    /// # Errors
    /// As [`Methods::read`].
    pub fn parse(text: &str, place: &str) -> Result<Self> {
        let methods: Self = toml::from_str(text).map_err(|e| {
            Error::usage(e.message().trim().to_string())
                .at(place)
                .remedy("docs/race.md has the format of this file")
        })?;
        methods.check().map_err(|e| e.at(place))?;
        Ok(methods)
    }

    fn check(&self) -> Result<()> {
        let names: Vec<&str> = self.all.iter().map(|m| m.name.as_str()).collect();
        if !names.contains(&PLAIN) {
            return Err(Error::usage(format!("no method is called `{PLAIN}`"))
                .remedy("add it: it is what all others are held against"));
        }
        let refuse = |m: &Method, what: String| Err(Error::usage(what).at(format!("method `{}`", m.name)));
        for (number, m) in self.all.iter().enumerate() {
            let usable = |c: char| c.is_ascii_alphanumeric() || "+-_".contains(c);
            if m.name.is_empty() || m.name.len() > 40 || !m.name.chars().all(usable) {
                return refuse(m, "a name has 1 to 40 letters, digits, `+`, `-` or `_`".into());
            }
            if names[..number].contains(&m.name.as_str()) {
                return refuse(m, "two methods have this name".into());
            }
            check_rates(&m.rates).or_else(|what| refuse(m, what))?;
            if let Some(control) = m.controls.iter().find(|c| !names.contains(&c.as_str()) || **c == m.name) {
                return refuse(m, format!("its control `{control}` is no other method"));
            }
        }
        for key in self.keys() {
            let owned = OWNED.iter().find(|(name, _)| *name == key);
            if let Some((_, why)) = owned {
                return Err(Error::usage(format!("methods cannot set {key}: {why}")));
            }
        }
        Ok(())
    }

    /// The methods with these names in the order of the file, [`PLAIN`] always among them; all without names.
    ///
    /// # Errors
    /// A name that there is not.
    pub fn chosen(&self, names: &[String]) -> Result<Vec<Method>> {
        let known: Vec<&str> = self.all.iter().map(|m| m.name.as_str()).collect();
        if let Some(other) = names.iter().find(|n| !known.contains(&n.as_str())) {
            let error = Error::usage(format!("there is no method {other:?}")).at("--methods");
            return Err(error.meant(other, &known));
        }
        let wanted = |m: &&Method| names.is_empty() || m.name == PLAIN || names.contains(&m.name);
        Ok(self.all.iter().filter(wanted).cloned().collect())
    }

    /// The dotted keys of all settings that a method or all of them make.
    pub fn keys(&self) -> BTreeSet<String> {
        let mut keys = BTreeSet::new();
        dotted("", &self.shared, &mut keys);
        self.all.iter().for_each(|m| dotted("", &m.settings, &mut keys));
        keys
    }

    /// Refuses settings given for all methods that methods, or the race itself, decide.
    ///
    /// # Errors
    /// Names the setting and what decides it.
    pub fn check_common(&self, layers: &[Layer]) -> Result<()> {
        let keys = self.keys();
        for layer in layers {
            let mut given = BTreeSet::new();
            dotted("", &layer.table, &mut given);
            let owned = OWNED.iter().filter(|(name, _)| !FOR_ALL.contains(name));
            if let Some((key, why)) = owned.clone().find(|(name, _)| given.contains(*name)) {
                let what = format!("a race decides {key} itself");
                return Err(Error::usage(what).at(&layer.source).remedy(*why));
            }
            if let Some(key) = given.iter().find(|key| keys.contains(*key)) {
                let what = format!("{key} is what methods of this race differ in");
                let how = "leave it out, or write the method you want into a file for --methods-from";
                return Err(Error::usage(what).at(&layer.source).remedy(how));
            }
        }
        Ok(())
    }
}

/// What is wrong with learning rates.
pub fn check_rates(rates: &[f64]) -> std::result::Result<(), String> {
    match rates.iter().enumerate().find(|(i, r)| !r.is_finite() || **r <= 0.0 || rates[..*i].contains(r)) {
        _ if rates.is_empty() => Err("no learning rate".into()),
        Some((_, rate)) => Err(format!("learning rate {rate}: each is above 0 and stands once")),
        None => Ok(()),
    }
}

fn dotted(prefix: &str, table: &Table, keys: &mut BTreeSet<String>) {
    for (key, value) in table {
        match value {
            Value::Table(inner) => dotted(&format!("{prefix}{key}."), inner, keys),
            _ => drop(keys.insert(format!("{prefix}{key}"))),
        }
    }
}
