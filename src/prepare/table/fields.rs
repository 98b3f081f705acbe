//! The wanted fields of a JSON object, by name or by path: `user`, `user.id`, `items.0.sku`.
//!
//! They are taken while the text is parsed; what is not wanted is passed over.

use super::{Cells, plain};
use crate::data::fault::{Checked, Fault, short};
use crate::data::rows;
use crate::error::Error;
use crate::prepare::cell::Cell;
use crate::prepare::literal;
use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::fmt;

/// A Python dictionary, as the Amazon and Steam files have them, read as a literal; none: it does not look like one.
pub(super) fn python(line: &str) -> Option<std::result::Result<Value, String>> {
    let inside = line.trim_start().strip_prefix('{')?.trim_start();
    (inside.starts_with('\'') || inside.starts_with("u'") || inside.starts_with("u\""))
        .then(|| literal::parse(line))
}

/// The wanted fields, and where they lie.
pub(super) struct Wanted<'c> {
    pub names: &'c [String],
    /// Names as paths.
    paths: Vec<Vec<&'c str>>,
    /// Columns that are paths, a bit each.
    nested: u32,
    /// Columns of the same name as one before them.
    again: Vec<(usize, usize)>,
}

impl<'c> Wanted<'c> {
    pub fn new(names: &'c [String]) -> Self {
        let paths: Vec<Vec<&str>> = names.iter().map(|name| name.split('.').collect()).collect();
        let nested =
            paths.iter().enumerate().filter(|(_, p)| p.len() > 1).fold(0, |bits, (at, _)| bits | 1 << at);
        let first = |at: usize| names.iter().position(|name| *name == names[at]).unwrap_or(at);
        let again = (0..names.len()).map(|at| (at, first(at))).filter(|(at, first)| at != first).collect();
        Self { names, paths, nested, again }
    }

    /// The wanted fields of an object; the others are passed over.
    pub fn cells<'de>(&self, line: &'de str, cells: &mut Cells<'de>) -> Checked<()> {
        if self.nested == 0 && plain::fields(line, |name, value| self.put(name, value, cells)).is_some() {
            self.repeat(cells);
            return Ok(());
        }
        *cells = Default::default();
        let mut source = serde_json::Deserializer::from_str(line);
        let read = Row { wanted: self, cells }.deserialize(&mut source).and_then(|()| source.end());
        match (read, python(line)) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(Ok(row))) => self.take(row, cells),
            (Err(_), Some(Err(what))) => {
                let error = Error::data(what).remedy("a JSON object or a Python dictionary a line");
                Err(Fault::new("bad literal", error))
            }
            (Err(e), None) if line.trim_start().starts_with('{') => Err(rows::not_json(line, &e)),
            (Err(_), None) => {
                let error = Error::data(format!("`{}` is not a JSON object", short(line)));
                Err(Fault::new("not an object", error.remedy("write one {\"field\": value, ..} a line")))
            }
        }
    }

    /// Takes a field, if it is wanted.
    fn put<'de>(&self, name: &str, value: Cell<'de>, cells: &mut Cells<'de>) {
        if let Some(column) = self.names.iter().position(|n| n == name) {
            cells[column] = value;
        }
    }

    /// Fills in columns of the same name as one before them.
    fn repeat(&self, cells: &mut Cells) {
        for (at, first) in &self.again {
            cells[*at] = cells[*first].clone();
        }
    }

    pub fn take(&self, row: Value, cells: &mut Cells) -> Checked<()> {
        // What is read as a value always deserialises from it.
        let _ = Row { wanted: self, cells }.deserialize(row);
        Ok(())
    }

    /// The columns below a field of this name, a bit each, of those in `among` that have come `depth` deep.
    fn below(&self, name: &str, depth: usize, among: u32) -> u32 {
        let goes = |path: &Vec<&str>| path.len() > depth && path[depth] == name;
        let columns = self.paths.iter().enumerate().filter(|(at, path)| among >> at & 1 == 1 && goes(path));
        columns.fold(0, |bits, (at, _)| bits | 1 << at)
    }
}

/// An object whose wanted fields are taken.
struct Row<'w, 'c, 'de> {
    wanted: &'w Wanted<'c>,
    cells: &'w mut Cells<'de>,
}

impl<'de> DeserializeSeed<'de> for Row<'_, '_, 'de> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, source: D) -> std::result::Result<(), D::Error> {
        source.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Row<'_, '_, 'de> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let Row { wanted, cells } = self;
        while let Some((field, below)) = map.next_key_seed(Key(wanted))? {
            match (field, below) {
                (Some(field), 0) => cells[field] = map.next_value()?,
                (None, 0) => map.next_value::<IgnoredAny>().map(|_| ())?,
                (leaf, among) => {
                    let inside = Inside { wanted, cells: &mut *cells, depth: 1, among };
                    match leaf {
                        Some(leaf) => inside.and_itself(leaf, map.next_value()?)?,
                        None => map.next_value_seed(inside)?,
                    }
                }
            }
        }
        wanted.repeat(cells);
        Ok(())
    }
}

/// Which columns a key names: the first that it is, and those below it.
struct Key<'w, 'c>(&'w Wanted<'c>);

impl<'de> DeserializeSeed<'de> for Key<'_, '_> {
    type Value = (Option<usize>, u32);
    fn deserialize<D: Deserializer<'de>>(self, source: D) -> std::result::Result<Self::Value, D::Error> {
        source.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_, '_> {
    type Value = (Option<usize>, u32);
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a name")
    }
    fn visit_str<E>(self, name: &str) -> std::result::Result<Self::Value, E> {
        let below = if self.0.nested == 0 { 0 } else { self.0.below(name, 0, self.0.nested) };
        Ok((self.0.names.iter().position(|n| n == name), below))
    }
}

/// A value in which some columns lie: fields of objects by name, elements of lists by number from 0 on.
struct Inside<'w, 'c, 'de> {
    wanted: &'w Wanted<'c>,
    cells: &'w mut Cells<'de>,
    depth: usize,
    among: u32,
}

impl<'de> Inside<'_, '_, 'de> {
    /// The column that ends here, and those that go deeper.
    fn at(&self, name: &str) -> (Option<usize>, u32) {
        let below = self.wanted.below(name, self.depth, self.among);
        let ends = |at: &usize| below >> at & 1 == 1 && self.wanted.paths[*at].len() == self.depth + 1;
        let leaf = (0..self.wanted.paths.len()).find(ends);
        (leaf, leaf.map_or(below, |leaf| below & !(1 << leaf)))
    }
    /// One level deeper, for the columns `among`.
    fn deeper(&mut self, among: u32) -> Inside<'_, '_, 'de> {
        Inside { wanted: self.wanted, cells: &mut *self.cells, depth: self.depth + 1, among }
    }
    /// Takes a value that is wanted itself, and what is wanted of its fields.
    fn and_itself<E: serde::de::Error>(self, leaf: usize, value: Value) -> std::result::Result<(), E> {
        self.cells[leaf] = value.clone().into();
        self.deserialize(value).map_err(E::custom)
    }
}

impl<'de> DeserializeSeed<'de> for Inside<'_, '_, 'de> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, source: D) -> std::result::Result<(), D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Inside<'_, '_, 'de> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            match self.at(&name) {
                (Some(leaf), 0) => self.cells[leaf] = map.next_value()?,
                (Some(leaf), among) => self.deeper(among).and_itself(leaf, map.next_value()?)?,
                (None, 0) => map.next_value::<IgnoredAny>().map(|_| ())?,
                (None, among) => map.next_value_seed(self.deeper(among))?,
            }
        }
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> std::result::Result<(), A::Error> {
        for number in 0usize.. {
            let more = match self.at(&number.to_string()) {
                (Some(leaf), 0) => list.next_element()?.map(|value| self.cells[leaf] = value),
                (Some(leaf), among) => {
                    let value = list.next_element()?;
                    value.map(|value| self.deeper(among).and_itself(leaf, value)).transpose()?
                }
                (None, 0) => list.next_element::<IgnoredAny>()?.map(|_| ()),
                (None, among) => list.next_element_seed(self.deeper(among))?,
            };
            if more.is_none() {
                break;
            }
        }
        Ok(())
    }
    fn visit_unit<E>(self) -> std::result::Result<(), E> {
        Ok(())
    }
    fn visit_bool<E>(self, _: bool) -> std::result::Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> std::result::Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> std::result::Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> std::result::Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> std::result::Result<(), E> {
        Ok(())
    }
}
