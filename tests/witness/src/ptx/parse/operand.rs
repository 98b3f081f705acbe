//! Operands of a statement.

/// What stands between the commas of an instruction.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// A register, a label or a symbol.
    Name(String),
    /// A symbol and an offset in bytes.
    Offset(String, i64),
    /// An integer, whatever the type of the instruction.
    Int(i128),
    /// The bits of `0f3F800000`.
    F32(u32),
    /// The bits of `0d3FF0000000000000`.
    F64(u64),
    /// `{a, b}`.
    List(Vec<Operand>),
    /// `[base + offset]`.
    Memory(Box<Operand>, i64),
    /// `[map, {x, y}]`.
    Tensor(Box<Operand>, Vec<Operand>),
    /// `value|predicate`.
    Pair(Box<Operand>, Box<Operand>),
}

/// The operands of `a, {b, c}, [d+4]`.
pub(super) fn operands(text: &str) -> Result<Vec<Operand>, String> {
    split(text).into_iter().map(operand).collect()
}

/// Splits at the commas outside of brackets.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut start) = (0, 0);
    let mut out = Vec::new();
    for (i, c) in text.bytes().enumerate() {
        match c {
            b'{' | b'[' | b'(' => depth += 1,
            b'}' | b']' | b')' => depth -= 1,
            b',' if depth == 0 => {
                out.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    let last = text[start..].trim();
    if !last.is_empty() {
        out.push(last);
    }
    out
}

fn operand(text: &str) -> Result<Operand, String> {
    if let Some(inner) = text.strip_prefix('{') {
        let inner = inner.strip_suffix('}').ok_or("a list without an end")?;
        return Ok(Operand::List(operands(inner)?));
    }
    if let Some(inner) = text.strip_prefix('[') {
        return address(inner.strip_suffix(']').ok_or("an address without an end")?);
    }
    if let Some((a, b)) = text.split_once('|') {
        return Ok(Operand::Pair(Box::new(operand(a.trim())?), Box::new(operand(b.trim())?)));
    }
    match text.as_bytes().first() {
        None => return Err("an empty operand".into()),
        Some(c) if c.is_ascii_digit() || *c == b'-' => return number(text),
        _ => {}
    }
    if let Some((base, offset)) = text.split_once('+') {
        let offset = offset.trim().parse::<i64>().map_err(|e| format!("{text}: {e}"))?;
        return Ok(Operand::Offset(base.trim().to_string(), offset));
    }
    Ok(Operand::Name(text.to_string()))
}

fn address(inner: &str) -> Result<Operand, String> {
    match split(inner).as_slice() {
        [one] => Ok(match operand(one)? {
            Operand::Offset(name, offset) => Operand::Memory(Box::new(Operand::Name(name)), offset),
            other => Operand::Memory(Box::new(other), 0),
        }),
        [map, coordinates] => match operand(coordinates)? {
            Operand::List(coordinates) => Ok(Operand::Tensor(Box::new(operand(map)?), coordinates)),
            _ => Err("coordinates that are no list".into()),
        },
        _ => Err("an address of several parts".into()),
    }
}

fn number(text: &str) -> Result<Operand, String> {
    let error = |e: std::num::ParseIntError| format!("{text}: {e}");
    if let Some(hex) = text.strip_prefix("0f").or(text.strip_prefix("0F")) {
        return Ok(Operand::F32(u32::from_str_radix(hex, 16).map_err(error)?));
    }
    if let Some(hex) = text.strip_prefix("0d").or(text.strip_prefix("0D")) {
        return Ok(Operand::F64(u64::from_str_radix(hex, 16).map_err(error)?));
    }
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |d| (true, d));
    let digits = digits.trim_end_matches('U');
    let value = match digits.strip_prefix("0x") {
        Some(hex) => i128::from_str_radix(hex, 16),
        None => digits.parse::<i128>(),
    };
    let value = value.map_err(error)?;
    Ok(Operand::Int(if negative { -value } else { value }))
}
