//! Line plots as inline SVG.
//!
//! Colours are written as presentation attributes, which any style sheet overrides: the report's dark
//! mode restyles `[stroke="#0072B2"]` and so on, and the file still looks right without it.

use super::format::{compact, number};
use super::hover::{Spot, with_spots};
use crate::error::{Error, Result};
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::prelude::*;

/// A colour by its name in the style sheet, on a light and on a dark ground.
pub(super) struct Tone {
    pub name: &'static str,
    pub light: (u8, u8, u8),
    pub dark: (u8, u8, u8),
}

const fn tone(name: &'static str, light: (u8, u8, u8), dark: (u8, u8, u8)) -> Tone {
    Tone { name, light, dark }
}

/// The colours of series, after Okabe and Ito: told apart by colour-blind readers too.
pub(super) const SERIES: [Tone; 8] = [
    tone("series-1", (0x00, 0x72, 0xB2), (0x5C, 0xB3, 0xE8)),
    tone("series-2", (0xD5, 0x5E, 0x00), (0xFF, 0x94, 0x55)),
    tone("series-3", (0x00, 0x8F, 0x68), (0x3C, 0xCB, 0x9F)),
    tone("series-4", (0xA0, 0x4A, 0x96), (0xDD, 0x8F, 0xCF)),
    tone("series-5", (0xA6, 0x7C, 0x00), (0xE3, 0xB3, 0x41)),
    tone("series-6", (0x3A, 0x9C, 0xC8), (0xA5, 0xDB, 0xF5)),
    tone("series-7", (0x88, 0x22, 0x55), (0xE5, 0x82, 0xA8)),
    tone("series-8", (0x6B, 0x6B, 0x6B), (0xA8, 0xA8, 0xA8)),
];

/// Axis labels, and lines of no task in particular.
pub(super) const INK: Tone = tone("ink", (0x4A, 0x50, 0x5A), (0xB4, 0xBC, 0xC8));
/// Grid lines.
pub(super) const GRID: Tone = tone("grid", (0xE3, 0xE6, 0xEA), (0x33, 0x3A, 0x44));

/// A series past the end of the palette takes its colour again with this stroke, which the style sheet
/// draws dashed.
pub(super) const DASHED_WIDTH: u32 = 5;
pub(super) const LINE_WIDTH: u32 = 4;
const FAINT_WIDTH: u32 = 2;

/// Drawn at twice the size it is shown at: plotters' coordinates are whole numbers.
pub(super) const SIZE: (u32, u32) = (1120, 520);
/// In units of plotters, which writes `size / 1.24`.
pub(super) const FONT_SIZE: f64 = 29.0;

/// From so many points on, each is shown by a dot of its own no more.
pub(super) const DOTS: usize = 40;
/// From so many points on, a moving average is drawn over the points.
const SMOOTHED: usize = 200;
/// Points of a series that tell their value where the pointer is.
const SPOTS: usize = 40;
/// More points than this a plot of this width cannot show.
const RESOLUTION: usize = 500;

/// One line of a figure.
#[derive(Debug)]
pub(super) struct Series {
    pub label: String,
    /// Number of the colour; `None` is [`INK`].
    pub hue: Option<usize>,
    /// (step, value), both finite, in the order of the steps.
    pub points: Vec<(f64, f64)>,
    /// Steps whose value was NaN or infinite.
    pub missing: usize,
    /// Measured beside training, not in it: drawn dashed.
    pub dashed: bool,
    /// Noise of single steps, which a moving average may stand for.
    pub noisy: bool,
}

/// Plots over the same steps, in one frame.
#[derive(Debug)]
pub(super) struct Figure {
    pub title: String,
    pub caption: String,
    pub series: Vec<Series>,
    /// Values the vertical axis shows in any case.
    pub includes: &'static [f64],
}

impl Tone {
    /// The colour on a light ground as plotters writes it.
    pub(super) fn hex(&self) -> String {
        let (r, g, b) = self.light;
        format!("#{r:02X}{g:02X}{b:02X}")
    }
    /// The colour on a dark ground.
    pub(super) fn dark_hex(&self) -> String {
        let (r, g, b) = self.dark;
        format!("#{r:02X}{g:02X}{b:02X}")
    }
    pub(super) fn color(&self) -> RGBColor {
        let (r, g, b) = self.light;
        RGBColor(r, g, b)
    }
}

impl Series {
    pub(super) fn tone(&self) -> &'static Tone {
        self.hue.map_or(&INK, |hue| &SERIES[hue % SERIES.len()])
    }
    /// The stroke width of the line, which also says whether it is dashed.
    pub(super) fn stroke(&self) -> u32 {
        let again = self.hue.is_some_and(|hue| hue >= SERIES.len());
        if again || self.dashed { DASHED_WIDTH } else { LINE_WIDTH }
    }
    /// Whether a moving average stands for the points.
    pub(super) fn is_smoothed(&self) -> bool {
        self.noisy && self.points.len() >= SMOOTHED
    }
    /// The number of points a moving average runs over.
    pub(super) fn window(&self) -> usize {
        (self.points.len() / 25).max(1)
    }
}

impl Figure {
    /// The plot as an `<svg>` element, without title and legend (the page has them as text).
    ///
    /// # Errors
    /// When the plot cannot be drawn.
    pub(super) fn svg(&self) -> Result<String> {
        let mut text = String::new();
        let spots = {
            let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
            self.draw(&area).map_err(|e| Error::numeric(format!("cannot draw {:?}: {e}", self.title)))?
        };
        Ok(with_spots(text, &spots))
    }

    fn draw(
        &self,
        area: &DrawingArea<SVGBackend, Shift>,
    ) -> std::result::Result<Vec<Spot>, DrawingAreaErrorKind<std::io::Error>> {
        let (x, y) = self.ranges();
        let mut chart = frame(area).build_cartesian_2d(x.0..x.1, y.0..y.1)?;
        axes(&mut chart, "step")?;
        let mut spots = Vec::new();
        for series in &self.series {
            let color = series.tone().color();
            let line = color.stroke_width(series.stroke());
            if series.is_smoothed() {
                let faint = color.mix(0.3).stroke_width(FAINT_WIDTH);
                chart.draw_series(LineSeries::new(thinned_keeping_extremes(&series.points), faint))?;
                let smooth = moving_average(&series.points, series.window());
                chart.draw_series(LineSeries::new(thinned(smooth), line))?;
            } else {
                chart.draw_series(LineSeries::new(thinned_keeping_extremes(&series.points), line))?;
            }
            if series.points.len() <= DOTS {
                chart.draw_series(series.points.iter().map(|p| Circle::new(*p, 6, color.filled())))?;
            }
            let told = spread(&series.points, SPOTS).map(|point| Spot {
                at: chart.backend_coord(point),
                text: format!("{}, step {}: {}", series.label, compact(point.0), number(point.1)),
            });
            spots.extend(told);
        }
        area.present()?;
        Ok(spots)
    }

    /// The ranges of the two axes; neither is empty.
    fn ranges(&self) -> ((f64, f64), (f64, f64)) {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let (x, _) = span(points().map(|p| p.0));
        let (y, is_flat) = span(points().map(|p| p.1).chain(self.includes.iter().copied()));
        let pad = if is_flat { 0.0 } else { 0.05 * (y.1 - y.0) };
        // A bound the figure names is a bound of the quantity: nothing lies beyond it.
        let low = if self.includes.contains(&y.0) { y.0 } else { y.0 - pad };
        let high = if self.includes.contains(&y.1) { y.1 } else { y.1 + pad };
        (x, (low, high))
    }
}

/// The smallest and the largest value; widened, and said to be flat, when they are one.
pub(super) fn span(values: impl Iterator<Item = f64>) -> ((f64, f64), bool) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return ((0.0, 1.0), true);
    }
    // Relative to the value, or adding it would change nothing at 1e20.
    let half = 0.5 * low.abs().max(high.abs()).max(1e-12);
    if high - low <= 1e-9 * half { ((low - half, high + half), true) } else { ((low, high), false) }
}

/// Means over the points within half a `window` to each side.
fn moving_average(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let half = window / 2;
    let around = |i: usize| &points[i.saturating_sub(half)..(i + half + 1).min(points.len())];
    let mean = |part: &[(f64, f64)]| part.iter().map(|p| p.1).sum::<f64>() / part.len() as f64;
    points.iter().enumerate().map(|(i, p)| (p.0, mean(around(i)))).collect()
}

/// At most [`RESOLUTION`] points at equal distances, the last one among them.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let mut kept: Vec<(f64, f64)> = spread(&points, RESOLUTION).copied().collect();
    kept.reverse();
    kept
}

/// At most `most` of the points at equal distances, the last one among them.
pub(super) fn spread<T>(points: &[T], most: usize) -> impl Iterator<Item = &T> {
    points.iter().rev().step_by(points.len().div_ceil(most).max(1))
}

/// The lowest and the highest point of each of at most [`RESOLUTION`] stretches: no spike is lost.
fn thinned_keeping_extremes(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let stretch = points.len().div_ceil(RESOLUTION).max(1);
    if stretch == 1 {
        return points.to_vec();
    }
    let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
    let extremes = points.chunks(stretch).flat_map(|part| {
        let mut pair = [part.iter().min_by(by_value), part.iter().max_by(by_value)];
        pair.sort_by(|a, b| a.map(|p| p.0).partial_cmp(&b.map(|p| p.0)).unwrap_or(std::cmp::Ordering::Equal));
        pair
    });
    extremes.flatten().copied().collect()
}

/// The frame of every plot: room for its labels.
pub(super) fn frame<'a, 'b>(
    area: &'a DrawingArea<SVGBackend<'b>, Shift>,
) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut frame = ChartBuilder::on(area);
    frame.margin_top(16).margin_right(28).x_label_area_size(76).y_label_area_size(112);
    frame
}

/// Its axes; `x` says what lies along the first.
pub(super) fn axes<'a, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
    x: &str,
) -> std::result::Result<(), DrawingAreaErrorKind<std::io::Error>>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let text = ("sans-serif", FONT_SIZE).into_font().color(&INK.color());
    chart
        .configure_mesh()
        .disable_x_mesh()
        .max_light_lines(0)
        .bold_line_style(GRID.color().stroke_width(2))
        .axis_style(GRID.color().stroke_width(2))
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&|value| compact(*value))
        .y_label_formatter(&|value| compact(*value))
        .x_desc(x)
        .label_style(text.clone())
        .axis_desc_style(text)
        .draw()
}
