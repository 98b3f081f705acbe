//! Values where the pointer is: an unseen circle around a point, whose `<title>` browsers show without any script.

use minijinja::HtmlEscape;
use std::fmt::Write;

/// A place that tells something.
pub(super) struct Spot {
    /// In the picture's own units.
    pub at: (i32, i32),
    /// What it tells.
    pub text: String,
}

/// A picture with its spots, above everything else.
pub(super) fn with_spots(mut svg: String, spots: &[Spot]) -> String {
    let Some(end) = svg.rfind("</svg>").filter(|_| !spots.is_empty()) else { return svg };
    let mut group = String::from("<g class=\"spots\" fill=\"transparent\">");
    for Spot { at: (x, y), text } in spots {
        // Writing to memory cannot fail.
        let _ = write!(
            group,
            "<circle cx=\"{x}\" cy=\"{y}\" r=\"12\"><title>{}</title></circle>",
            HtmlEscape(text)
        );
    }
    group += "</g>";
    svg.insert_str(end, &group);
    svg
}
