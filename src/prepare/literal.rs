//! Python and numpy literals as JSON values: what data frames leave in CSV cells.
//!
//! Lists print as `[1, 2]`, numpy arrays as `[1 2]` or `[{...}\n {...}]` without commas, missing values as
//! `nan` or `None`. JSON is a subset of what is read here.

use serde_json::{Map, Number, Value};

/// Deepest nesting that is read.
const MAX_DEPTH: usize = 32;

/// Reads one literal. `nan`, `None`, `NaT` and `null` are null. An infinity is an error: it is no measurement.
///
/// # Errors
/// What is wrong, and at which character (from 1).
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut parser = Parser { text: text.as_bytes(), at: 0 };
    let value = parser.value(0)?;
    parser.blanks();
    match parser.at == text.len() {
        true => Ok(value),
        false => Err(parser.fault("something follows the value")),
    }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn fault(&self, what: &str) -> String {
        let head = String::from_utf8_lossy(&self.text[..self.at.min(self.text.len())]);
        format!("{what} at character {}", head.chars().count() + 1)
    }
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }
    fn blanks(&mut self) {
        while self.peek().is_some_and(|b| b.is_ascii_whitespace()) {
            self.at += 1;
        }
    }
    /// Blanks and, where there is one, a comma.
    fn separator(&mut self) {
        self.blanks();
        if self.peek() == Some(b',') {
            self.at += 1;
            self.blanks();
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        self.blanks();
        if depth > MAX_DEPTH {
            return Err(self.fault("nested too deeply"));
        }
        match self.peek() {
            None => Err(self.fault("the value is cut off")),
            Some(b'[') => self.list(b']', depth),
            Some(b'(') => self.list(b')', depth),
            Some(b'{') => self.object(depth),
            Some(quote @ (b'"' | b'\'')) => self.string(quote).map(Value::String),
            Some(_) => self.word(depth),
        }
    }

    fn list(&mut self, close: u8, depth: usize) -> Result<Value, String> {
        self.at += 1;
        let mut list = Vec::new();
        loop {
            self.separator();
            match self.peek() {
                Some(b) if b == close => {
                    self.at += 1;
                    return Ok(Value::Array(list));
                }
                None => return Err(self.fault("the list is cut off")),
                // numpy abbreviates long arrays when it prints them: what it left out is lost.
                Some(b'.') if self.text[self.at..].starts_with(b"...") => {
                    return Err(self.fault("the list was abbreviated with `...` when it was written"));
                }
                Some(_) => list.push(self.value(depth + 1)?),
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, String> {
        self.at += 1;
        let mut object = Map::new();
        loop {
            self.separator();
            // Python 2 marks its strings.
            if let [b'u' | b'b', b'"' | b'\'', ..] = &self.text[self.at..] {
                self.at += 1;
            }
            match self.peek() {
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Value::Object(object));
                }
                Some(quote @ (b'"' | b'\'')) => {
                    let key = self.string(quote)?;
                    self.blanks();
                    if self.peek() != Some(b':') {
                        return Err(self.fault("a `:` is missing"));
                    }
                    self.at += 1;
                    let value = self.value(depth + 1)?;
                    object.insert(key, value);
                }
                None => return Err(self.fault("the object is cut off")),
                Some(_) => return Err(self.fault("a key in quotes is missing")),
            }
        }
    }

    fn string(&mut self, quote: u8) -> Result<String, String> {
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            let Some(byte) = self.peek() else { return Err(self.fault("the string is cut off")) };
            self.at += 1;
            match byte {
                b if b == quote => {
                    return String::from_utf8(bytes).map_err(|_| self.fault("the string is not UTF-8"));
                }
                b'\\' => self.escape(&mut bytes)?,
                b => bytes.push(b),
            }
        }
    }

    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), String> {
        let Some(code) = self.peek() else { return Err(self.fault("the string is cut off")) };
        self.at += 1;
        let digits = match code {
            b'x' => 2,
            b'u' => 4,
            b'U' => 8,
            _ => {
                bytes.push(match code {
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'r' => b'\r',
                    other => other,
                });
                return Ok(());
            }
        };
        let mut number = self.hexadecimal(digits)?;
        // JSON writes what lies beyond 16 bits as a pair of surrogates.
        if (0xd800..0xdc00).contains(&number) && self.text[self.at..].starts_with(b"\\u") {
            self.at += 2;
            let low = self.hexadecimal(4)?;
            number = 0x10000 + ((number - 0xd800) << 10) + (low.wrapping_sub(0xdc00) & 0x3ff);
        }
        let character = char::from_u32(number).unwrap_or('\u{fffd}');
        bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }

    fn hexadecimal(&mut self, digits: usize) -> Result<u32, String> {
        let end = self.at + digits;
        let number = self
            .text
            .get(self.at..end)
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u32::from_str_radix(d, 16).ok());
        self.at = end.min(self.text.len());
        number.ok_or_else(|| self.fault("an escape is cut off"))
    }

    /// A number, a constant, or a call around a value such as `array([1, 2], dtype=int64)`.
    fn word(&mut self, depth: usize) -> Result<Value, String> {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_alphanumeric() || b"+-._".contains(&b)) {
            self.at += 1;
        }
        let word = std::str::from_utf8(&self.text[start..self.at]).unwrap_or_default();
        let fault = |what: String| Err(Parser { text: self.text, at: start }.fault(&what));
        match word {
            "nan" | "NaN" | "None" | "null" | "NaT" | "<NA>" => return Ok(Value::Null),
            "True" | "true" => return Ok(Value::Bool(true)),
            "False" | "false" => return Ok(Value::Bool(false)),
            "inf" | "-inf" | "Infinity" | "-Infinity" => return fault(format!("`{word}` is no measurement")),
            "" => return fault("no value can begin here".into()),
            _ => {}
        }
        match self.peek() {
            Some(b'(') => return self.call(depth),
            // Python 2 marks its strings.
            Some(quote @ (b'"' | b'\'')) if matches!(word, "u" | "b") => {
                return self.string(quote).map(Value::String);
            }
            _ => {}
        }
        if let Ok(integer) = word.parse::<i64>() {
            return Ok(Value::from(integer));
        }
        let float =
            word.parse::<f64>().ok().filter(|x| x.is_finite() && !word.starts_with(char::is_alphabetic));
        match float.and_then(Number::from_f64) {
            Some(number) => Ok(Value::Number(number)),
            None => fault(format!("`{}` is no value", word.chars().take(40).collect::<String>())),
        }
    }

    fn call(&mut self, depth: usize) -> Result<Value, String> {
        self.at += 1;
        let value = self.value(depth + 1)?;
        // What follows the first argument (a dtype) says nothing about the value.
        while self.peek().is_some_and(|b| b != b')') {
            self.at += 1;
        }
        if self.peek().is_none() {
            return Err(self.fault("the call is cut off"));
        }
        self.at += 1;
        Ok(value)
    }
}
