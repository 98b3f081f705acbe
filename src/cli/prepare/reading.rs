//! How each kind of table is read: what the flags say of all tables, and of some.

use super::args::TextArgs;
use crate::error::{Error, Result};
use crate::prepare::Reading;

const TABLES: [&str; 3] = ["events", "items", "queries"];

/// How the tables of events, of items and of queries are read.
pub(super) fn of(text: &TextArgs) -> Result<[Reading; 3]> {
    let common = Reading { escapes: text.escapes, missing: text.missing.clone(), ..Reading::default() };
    let mut all = [(); 3].map(|()| common.clone());
    let separators = each("--separator", &text.separator)?;
    let headers = each("--header", &text.header)?;
    let quotes = each("--quotes", &text.quotes)?;
    let encodings = each("--encoding", &text.encoding)?;
    let values = separators.into_iter().zip(headers).zip(quotes).zip(encodings);
    for (reading, (((separator, header), quotes), encoding)) in all.iter_mut().zip(values) {
        reading.separator = separator.map(String::from);
        reading.header = header.map(|switch| on("--header", switch)).transpose()?;
        reading.quotes = quotes.map(|switch| on("--quotes", switch)).transpose()?;
        reading.encoding = encoding.map(String::from);
    }
    Ok(all)
}

/// What is said of each kind of table; what is said of one wins over what is said of all.
fn each<'a>(flag: &str, values: &'a [String]) -> Result<[Option<&'a str>; 3]> {
    let mut common = None;
    let mut own = [None; 3];
    for value in values {
        let scope = value
            .split_once('=')
            .and_then(|(table, value)| TABLES.iter().position(|known| *known == table).map(|at| (at, value)));
        let (place, value) = match scope {
            Some((at, value)) => (&mut own[at], value),
            None => (&mut common, value.as_str()),
        };
        if let Some(before) = place.replace(value) {
            let what = format!("`{before}` and `{value}` for the same tables");
            return Err(Error::usage(what)
                .at(flag)
                .remedy(format!("give one for all tables, or for each kind: {flag} items=VALUE")));
        }
    }
    Ok(own.map(|value| value.or(common)))
}

fn on(flag: &str, switch: &str) -> Result<bool> {
    match switch {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(Error::usage(format!("`{switch}` is neither on nor off")).at(flag).remedy("on or off")),
    }
}
