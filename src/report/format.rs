//! Numbers as people read them.

/// What stands where a value is missing or not finite.
pub(super) const MISSING: &str = "—";

/// A measured value: four decimals where they say something, fewer for large values.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => MISSING.into(),
        0.0 => "0".into(),
        size if size >= 1e6 => compact(value),
        size if size >= 1000.0 => format!("{value:.1}"),
        size if size >= 10.0 => format!("{value:.2}"),
        size if size >= 1e-3 => format!("{value:.4}"),
        _ => format!("{value:.2e}"),
    }
}

/// A value that may be missing.
pub(super) fn optional(value: Option<f64>) -> String {
    value.map_or(MISSING.into(), number)
}

/// A tick or a count in as few characters as say it: `12.5k`, `0.25`, `2e-4`.
pub(super) fn compact(value: f64) -> String {
    let size = value.abs();
    let (scaled, unit) = match size {
        _ if size >= 1e15 => return scientific(value),
        _ if size >= 1e12 => (value / 1e12, "T"),
        _ if size >= 1e9 => (value / 1e9, "G"),
        _ if size >= 1e6 => (value / 1e6, "M"),
        _ if size >= 1e4 => (value / 1e3, "k"),
        _ if size >= 1e-3 || size == 0.0 => (value, ""),
        _ => return scientific(value),
    };
    let decimals = if scaled.abs() >= 100.0 { 1 } else { 4 };
    format!("{}{unit}", trimmed(format!("{scaled:.decimals$}")))
}

/// A difference with its sign.
pub(super) fn signed(value: f64) -> String {
    match number(value.abs()) {
        text if value > 0.0 => format!("+{text}"),
        text if value < 0.0 => format!("−{text}"),
        text => text,
    }
}

/// A ratio minus one, as a signed percentage.
pub(super) fn percent(ratio: f64) -> String {
    let value = ratio * 100.0;
    let decimals = if value.abs() >= 100.0 { 0 } else { 1 };
    let sign = if value < 0.0 { '−' } else { '+' };
    format!("{sign}{:.decimals$} %", value.abs())
}

fn scientific(value: f64) -> String {
    let text = format!("{value:.2e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => format!("{}e{exponent}", trimmed(mantissa.into())),
        None => text,
    }
}

/// Without the zeros at the end of its decimals.
fn trimmed(text: String) -> String {
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}
