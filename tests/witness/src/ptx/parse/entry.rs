//! An entry function: parameters, launch bounds, statements.

use super::operand::{Operand, operands};

/// A parameter of a kernel.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its symbol.
    pub name: String,
    /// Where it lies among the arguments, bytes.
    pub offset: usize,
    /// Its size, bytes.
    pub bytes: usize,
}

/// A line of the source, and the line that called for it when it was inlined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Loc {
    /// The file's number; 0: not known.
    pub file: u32,
    /// The line.
    pub line: u32,
    /// File and line of the innermost call; 0: not inlined.
    pub outer: (u32, u32),
}

/// A statement of a body.
#[derive(Debug, Clone)]
pub enum Statement {
    /// A label, known in its scope.
    Label(String),
    /// `{`.
    Open,
    /// `}`.
    Close,
    /// `.reg`: the type, then names; a name with a count stands for that many registers.
    Registers(String, Vec<(String, Option<u32>)>),
    /// `.local`: name, alignment, bytes.
    Local(String, usize, usize),
    /// `.loc`: what the next instructions were made of.
    Source(Loc),
    /// An instruction.
    Code {
        /// Whether the predicate is negated, and its name.
        guard: Option<(bool, String)>,
        /// The opcode with all its suffixes.
        op: String,
        /// Its operands.
        operands: Vec<Operand>,
        /// Its line in the PTX text.
        line: u32,
    },
}

/// An entry function.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The kernel's name.
    pub name: String,
    /// Its parameters.
    pub parameters: Vec<Parameter>,
    /// Bytes of all parameters.
    pub parameter_bytes: usize,
    /// Most threads of a block (`.maxntid`).
    pub max_threads: u32,
    /// The body.
    pub statements: Vec<Statement>,
}

impl Entry {
    /// Reads `name(parameters) directives { body`; the first line of the text is `line` of the module.
    pub(super) fn parse(text: &str, line: u32) -> Result<Self, String> {
        let part = |c: char| text.find(c).ok_or_else(|| format!("line {line}: an entry without {c}"));
        let (open, close, body) = (part('(')?, part(')')?, part('{')?);
        if open > close || close > body {
            return Err(format!("line {line}: an entry whose brackets are out of order"));
        }
        let mut parameters: Vec<Parameter> = Vec::new();
        let mut parameter_bytes = 0usize;
        for p in text[open + 1..close].split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (name, align, bytes) = variable(p).ok_or_else(|| format!("line {line}: parameter {p}"))?;
            let offset = parameter_bytes.next_multiple_of(align);
            parameters.push(Parameter { name, offset, bytes });
            parameter_bytes = offset + bytes;
        }
        let limits = text[close + 1..body].lines().find_map(|l| l.trim().strip_prefix(".maxntid "));
        let max_threads = match limits {
            Some(l) => l
                .split(',')
                .map(|n| n.trim().parse::<u32>())
                .product::<Result<u32, _>>()
                .map_err(|e| format!("line {line}: .maxntid {l}: {e}"))?,
            None => 1024,
        };
        let body_line = line + lines(&text[..body]);
        let statements = body_statements(&text[body + 1..], body_line)?;
        Ok(Self {
            name: text[..open].trim().to_string(),
            parameters,
            parameter_bytes,
            max_threads,
            statements,
        })
    }
}

fn lines(text: &str) -> u32 {
    text.bytes().filter(|c| *c == b'\n').count() as u32
}

/// Name, alignment and bytes of `.param .align 8 .b8 name[16]` or `.param .u32 name`.
fn variable(text: &str) -> Option<(String, usize, usize)> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let unit = words.iter().find_map(|w| super::super::decode::bits_of(w.strip_prefix('.')?))? as usize / 8;
    let align = match words.iter().position(|w| *w == ".align") {
        Some(i) => words.get(i + 1)?.parse().ok()?,
        None => unit,
    };
    // Nothing of a kernel has more than a few kilobytes: sums of these do not overflow.
    let last = words.last().filter(|_| (1..=128).contains(&align))?;
    match last.split_once('[') {
        Some((name, count)) => Some((
            name.to_string(),
            align,
            count.trim_end_matches(']').parse::<usize>().ok().filter(|n| *n <= 1 << 24)? * unit,
        )),
        None => Some(((*last).to_string(), align, unit)),
    }
}

fn body_statements(text: &str, mut line: u32) -> Result<Vec<Statement>, String> {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'\n' => line += 1,
            b'{' => out.push(Statement::Open),
            b'}' => out.push(Statement::Close),
            c if c.is_ascii_whitespace() || c == b';' => {}
            b'.' if text[i..].starts_with(".loc")
                && bytes.get(i + 4).is_some_and(u8::is_ascii_whitespace) =>
            {
                let end = text[i..].find('\n').map_or(text.len(), |n| i + n);
                out.push(Statement::Source(
                    loc(&text[i..end]).ok_or_else(|| format!("line {line}: {}", &text[i..end]))?,
                ));
                i = end;
                continue;
            }
            _ => {
                if let Some(length) = label(&text[i..]) {
                    out.push(Statement::Label(text[i..i + length].to_string()));
                    i += length;
                } else {
                    let end = i + text[i..].find(';').ok_or_else(|| format!("line {line}: no semicolon"))?;
                    let one = text[i..end].trim();
                    out.extend(statement(one, line).map_err(|e| format!("line {line}: {one}: {e}"))?);
                    line += lines(&text[i..end]);
                    i = end;
                }
            }
        }
        i += 1;
    }
    Ok(out)
}

/// The length of a label at the start of the text, its colon not counted.
fn label(text: &str) -> Option<usize> {
    let end = text.bytes().position(|c| !(c.is_ascii_alphanumeric() || b"_$%".contains(&c)))?;
    let after = &text.as_bytes()[end..];
    (end > 0 && after[0] == b':' && after.get(1) != Some(&b':')).then_some(end)
}

/// `.loc 2 114 3, function_name $L, inlined_at 1 12 3`
fn loc(text: &str) -> Option<Loc> {
    let numbers = |t: &str| -> Option<(u32, u32)> {
        let mut words = t.split_whitespace();
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    let (file, line) = numbers(text.strip_prefix(".loc")?)?;
    let outer = text.split_once("inlined_at").map_or(Some((0, 0)), |(_, rest)| numbers(rest))?;
    Some(Loc { file, line, outer })
}

fn statement(s: &str, line: u32) -> Result<Option<Statement>, String> {
    if let Some(rest) = s.strip_prefix(".reg ") {
        let (kind, names) = rest.trim().split_once(char::is_whitespace).ok_or("no register names")?;
        let names = names.split(',').map(|n| match n.trim().split_once('<') {
            Some((name, count)) => count.trim_end_matches('>').parse().map(|c| (name.to_string(), Some(c))),
            None => Ok((n.trim().to_string(), None)),
        });
        let names = names.collect::<Result<_, std::num::ParseIntError>>().map_err(|e| e.to_string())?;
        return Ok(Some(Statement::Registers(kind.to_string(), names)));
    }
    if s.starts_with(".local ") {
        let (name, align, bytes) = variable(s).ok_or("size of a local variable")?;
        return Ok(Some(Statement::Local(name, align, bytes)));
    }
    if s.starts_with(".pragma") {
        return Ok(None);
    }
    if s.starts_with('.') {
        return Err("a directive that is not modelled".into());
    }
    let (guard, s) = match s.strip_prefix('@') {
        Some(rest) => {
            let (p, rest) = rest.split_once(char::is_whitespace).ok_or("a guard alone")?;
            (Some((p.starts_with('!'), p.trim_start_matches('!').to_string())), rest.trim())
        }
        None => (None, s),
    };
    let (op, rest) = s.split_once(char::is_whitespace).unwrap_or((s, ""));
    Ok(Some(Statement::Code { guard, op: op.to_string(), operands: operands(rest)?, line }))
}
