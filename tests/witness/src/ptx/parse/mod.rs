//! PTX text as nvcc writes it: modules, entry functions, statements, operands.

mod entry;
mod operand;

pub use entry::{Entry, Loc, Parameter, Statement};
pub use operand::Operand;

use std::collections::HashMap;
use std::ops::Range;

/// Where an entry function lies in its module's text.
#[derive(Debug, Clone)]
pub struct EntryText {
    /// The kernel's name.
    pub name: String,
    range: Range<usize>,
    line: u32,
}

/// A module's text and what stands outside its functions.
#[derive(Debug, Clone)]
pub struct Module {
    /// The `.target`, such as `sm_90a`.
    pub target: String,
    /// The kernels, in the order of the text.
    pub entries: Vec<EntryText>,
    /// Initialised variables in global memory, by name.
    pub globals: HashMap<String, Vec<u8>>,
    /// Source files by their number in `.loc`.
    pub files: HashMap<u32, String>,
    text: String,
}

impl Module {
    /// Reads a module; the bodies of its entries are read by [`Module::entry`].
    ///
    /// # Errors
    /// Text that is no PTX, and what is not modelled: functions that are called, constant and static shared memory.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = without_comments(text);
        let directive =
            |name: &str| text.lines().find_map(|l| l.trim().strip_prefix(name).map(|r| r.trim().to_string()));
        let target = directive(".target ").ok_or("no .target: this is no PTX")?;
        let entries = find_entries(&text)?;
        let (mut globals, mut files) = (HashMap::new(), HashMap::new());
        for (n, line) in text.lines().enumerate() {
            let at = |e: String| format!("line {}: {}: {e}", n + 1, line.trim());
            let words = line.trim_start();
            if words.starts_with(".global ") {
                let (name, bytes) = global(words).map_err(at)?;
                globals.insert(name, bytes);
            } else if words.starts_with(".file") {
                let (number, path) = file(words).ok_or_else(|| at("not a file".into()))?;
                files.insert(number, path);
            } else if words.starts_with(".shared ")
                || words.starts_with(".const ")
                || words.contains(".func ")
            {
                return Err(at("not modelled".into()));
            }
        }
        Ok(Self { target, entries, globals, files, text })
    }

    /// Bytes of an entry's parameters; 0 for an entry that does not exist. Does not read its body.
    pub fn entry_parameters(&self, name: &str) -> usize {
        let Some(entry) = self.entries.iter().find(|e| e.name == name) else { return 0 };
        let text = &self.text[entry.range.clone()];
        let head = &text[..text.find('{').unwrap_or(0)];
        Entry::parse(&format!("{head}{{"), 0).map_or(0, |e| e.parameter_bytes)
    }

    /// Reads an entry with its body.
    ///
    /// # Errors
    /// No such entry, or a statement that cannot be read, with its line.
    pub fn entry(&self, name: &str) -> Result<Entry, String> {
        let entry = self.entries.iter().find(|e| e.name == name).ok_or_else(|| format!("no entry {name}"))?;
        Entry::parse(&self.text[entry.range.clone()], entry.line)
    }
}

fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let code = line.find("//").filter(|_| !line.contains('"')).map_or(line, |i| &line[..i]);
        // Only names of files are anything else.
        out.extend(code.chars().map(|c| if c.is_ascii() { c } else { '?' }));
        out.push('\n');
    }
    out
}

fn find_entries(text: &str) -> Result<Vec<EntryText>, String> {
    let mut entries = Vec::new();
    let mut at = 0;
    while let Some(found) = text[at..].find(".entry ") {
        let start = at + found + ".entry ".len();
        let line = text[..start].bytes().filter(|c| *c == b'\n').count() as u32 + 1;
        let error = |what: &str| format!("line {line}: an entry without {what}");
        let name_end = start + text[start..].find('(').ok_or_else(|| error("parameters"))?;
        let open = start + text[start..].find('{').ok_or_else(|| error("a body"))?;
        let end = closing_brace(&text[open..]).ok_or_else(|| error("an end"))? + open;
        entries.push(EntryText { name: text[start..name_end].trim().to_string(), range: start..end, line });
        at = end;
    }
    Ok(entries)
}

fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (i, c) in text.bytes().enumerate() {
        match c {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return Some(i);
        }
    }
    None
}

/// `.global .align 4 .b8 name[24] = {1, 2, ..};`
fn global(line: &str) -> Result<(String, Vec<u8>), String> {
    let (head, values) = line.split_once('=').ok_or("a variable without values")?;
    if !head.contains(".b8 ") {
        return Err("a variable that is not given in bytes".into());
    }
    let name = head
        .split_whitespace()
        .last()
        .and_then(|n| n.split('[').next())
        .ok_or("a variable without a name")?;
    let values = values.trim().trim_end_matches(';').trim().trim_start_matches('{').trim_end_matches('}');
    let bytes = values.split(',').map(|v| v.trim().parse::<u8>().map_err(|e| e.to_string()));
    Ok((name.to_string(), bytes.collect::<Result<_, _>>()?))
}

/// `.file 1 "path"`
fn file(line: &str) -> Option<(u32, String)> {
    let mut parts = line.split('"');
    let number = parts.next()?.split_whitespace().nth(1)?.parse().ok()?;
    Some((number, parts.next()?.to_string()))
}
