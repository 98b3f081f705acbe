//! The HTML templates, their style sheet and its colours.

use super::plot::{GRID, INK, SERIES, Tone};
use crate::error::{Error, Result};
use minijinja::{Environment, Value, context};

/// The report of a run. A name decides that everything put into the template is escaped as HTML.
pub(super) const REPORT: &str = "report.html";
/// The page of a race.
pub(super) const RACE: &str = "race.html";

const TEMPLATES: [(&str, &str); 3] = [
    (REPORT, include_str!("../../assets/report.html.jinja")),
    (RACE, include_str!("../../assets/race.html.jinja")),
    ("style.css", include_str!("../../assets/style.css.jinja")),
];

/// Renders a template with `values`, and what all of them know: the palette and the engine's version.
///
/// # Errors
/// A template that fails.
pub(super) fn render(name: &str, values: Value) -> Result<String> {
    let fault = |e: minijinja::Error| Error::data(format!("the template {name} fails: {e}"));
    let tone = |tone: &Tone| context! { name => tone.name, light => tone.hex(), dark => tone.dark_hex() };
    let all = context! {
        version => env!("CARGO_PKG_VERSION"),
        palette => SERIES.iter().chain([&INK, &GRID]).map(tone).collect::<Vec<_>>(),
        ..values
    };
    let mut environment = Environment::new();
    for (name, source) in TEMPLATES {
        environment.add_template(name, source).map_err(fault)?;
    }
    environment.get_template(name).and_then(|template| template.render(all)).map_err(fault)
}
