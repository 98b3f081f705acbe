//! A page of curves: one measure against another, a curve a method, with intervals; tables and notes beside them.

use super::format::{compact, number};
use super::hover::{Spot, with_spots};
use super::plot::{DASHED_WIDTH, DOTS, LINE_WIDTH, SERIES, SIZE, Tone, axes, frame, span, spread};
use super::report_table::ReportTable;
use super::template::{self, RACE};
use crate::error::{Error, Result};
use crate::files::write_atomically;
use minijinja::{Value, context};
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use std::path::Path;

/// A place on a curve; intervals hold it.
#[derive(Debug, Clone, PartialEq)]
pub struct CurvePoint {
    /// What stands for it in words, such as a learning rate.
    pub label: String,
    /// Along the horizontal axis; above 0 where that is logarithmic.
    pub x: f64,
    /// On the other one.
    pub y: f64,
    /// Interval of x.
    pub x_interval: Option<(f64, f64)>,
    /// Interval of y.
    pub y_interval: Option<(f64, f64)>,
    /// Drawn with a ring around it.
    pub marked: bool,
}

/// Points that belong together, in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Its name.
    pub label: String,
    /// The points.
    pub points: Vec<CurvePoint>,
}

/// Curves in one frame.
#[derive(Debug, Clone, PartialEq)]
pub struct CurveFigure {
    /// Heading.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// What the horizontal axis is.
    pub x: String,
    /// Whether that axis is linear; else logarithmic.
    pub linear: bool,
    /// The curves; those without points keep their colour and are not drawn.
    pub curves: Vec<Curve>,
}

/// A page. Whatever is empty is left out of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CurvePage {
    /// What kind of page it is: `race`, `comparison`.
    pub kind: String,
    /// Heading of the figures.
    pub heading: String,
    /// What is compared, in a few words.
    pub title: String,
    /// (name, value).
    pub facts: Vec<(String, String)>,
    /// What it comes to, in sentences.
    pub verdict: Vec<String>,
    /// The figures.
    pub figures: Vec<CurveFigure>,
    /// Tables, and whether the reader has to unfold each.
    pub tables: Vec<(ReportTable, bool)>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

impl CurvePage {
    /// The text of the HTML file: it needs no network and no scripts.
    ///
    /// # Errors
    /// When a figure cannot be drawn.
    pub fn render(&self) -> Result<String> {
        let figures = self.figures.iter().map(CurveFigure::values).collect::<Result<Vec<_>>>()?;
        let table = |(table, folded): &(ReportTable, bool)| {
            let rows: Vec<Value> = table.rows.iter().map(Value::from).collect();
            context! { title => &table.title, caption => &table.caption, header => &table.header, rows, folded }
        };
        let facts = self.facts.iter().map(|(name, value)| context! { name, value });
        template::render(
            RACE,
            context! {
                kind => &self.kind,
                heading => &self.heading,
                title => &self.title,
                facts => facts.collect::<Vec<_>>(),
                verdict => &self.verdict,
                figures,
                tables => self.tables.iter().map(table).collect::<Vec<_>>(),
                notes => &self.notes,
            },
        )
    }

    /// Renders the page and writes it to `path`, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be rendered or written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_atomically(path, self.render()?.as_bytes())
    }
}

fn tone(number: usize) -> &'static Tone {
    &SERIES[number % SERIES.len()]
}

/// A curve past the end of the palette takes its colour again, dashed.
fn stroke(number: usize) -> u32 {
    if number >= SERIES.len() { DASHED_WIDTH } else { LINE_WIDTH }
}

impl CurveFigure {
    pub(super) fn values(&self) -> Result<Value> {
        let shown = self.curves.iter().enumerate().filter(|(_, c)| !c.points.is_empty());
        let series = shown
            .map(|(n, c)| context! { label => &c.label, color => tone(n).hex(), stroke => stroke(n) })
            .collect::<Vec<_>>();
        Ok(context! {
            title => &self.title,
            caption => &self.caption,
            description => self.described(),
            svg => Value::from_safe_string(self.svg()?),
            series,
        })
    }

    /// What the plot shows, for those who do not see it.
    fn described(&self) -> String {
        let point = |p: &CurvePoint| format!("{:.3} at {} ({})", p.y, compact(p.x), p.label);
        let curve =
            |c: &Curve| format!("{}: {}", c.label, c.points.iter().map(point).collect::<Vec<_>>().join(", "));
        let drawn = self.curves.iter().filter(|c| !c.points.is_empty());
        format!("{}, by {}. {}.", self.title, self.x, drawn.map(curve).collect::<Vec<_>>().join("; "))
    }

    /// The plot as an `<svg>` element.
    ///
    /// # Errors
    /// When the plot cannot be drawn.
    fn svg(&self) -> Result<String> {
        let mut text = String::new();
        let spots = {
            let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
            self.draw(&area).map_err(|e| Error::numeric(format!("cannot draw {:?}: {e}", self.title)))?
        };
        Ok(with_spots(text, &spots))
    }

    /// Ranges of both axes with some air; neither is empty.
    fn ranges(&self) -> ((f64, f64), (f64, f64)) {
        let points = || self.curves.iter().flat_map(|c| &c.points);
        let ends = |value: f64, interval: Option<(f64, f64)>| {
            let (low, high) = interval.unwrap_or((value, value));
            [low, value, high]
        };
        let along = |x: f64| if self.linear { x } else { x.ln() };
        let all = points().flat_map(|p| ends(p.x, p.x_interval)).filter(|x| self.linear || *x > 0.0);
        let (x, _) = span(all.map(along));
        let (y, _) = span(points().flat_map(|p| ends(p.y, p.y_interval)));
        let (wide, high) = (0.04 * (x.1 - x.0), 0.06 * (y.1 - y.0));
        let x = (x.0 - wide, x.1 + wide);
        (if self.linear { x } else { (x.0.exp(), x.1.exp()) }, (y.0 - high, y.1 + high))
    }

    fn draw(
        &self,
        area: &DrawingArea<SVGBackend, Shift>,
    ) -> std::result::Result<Vec<Spot>, DrawingAreaErrorKind<std::io::Error>> {
        let (x, y) = self.ranges();
        let spots = match self.linear {
            true => self.lines(&mut frame(area).build_cartesian_2d(x.0..x.1, y.0..y.1)?, x.0)?,
            false => {
                self.lines(&mut frame(area).build_cartesian_2d((x.0..x.1).log_scale(), y.0..y.1)?, x.0)?
            }
        };
        area.present()?;
        Ok(spots)
    }

    /// Curves, intervals and rings; nothing goes beyond `left`.
    fn lines<'a, X>(
        &self,
        chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, RangedCoordf64>>,
        left: f64,
    ) -> std::result::Result<Vec<Spot>, DrawingAreaErrorKind<std::io::Error>>
    where
        X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        axes(chart, &self.x)?;
        let dotted = self.curves.iter().all(|curve| curve.points.len() <= DOTS);
        let mut spots = Vec::new();
        for (number, curve) in self.curves.iter().enumerate() {
            let color = tone(number).color();
            let line = color.stroke_width(stroke(number));
            let points = curve.points.iter();
            chart.draw_series(LineSeries::new(points.clone().map(|p| (p.x, p.y)), line))?;
            let bars = points.clone().flat_map(|p| {
                let across = p.x_interval.map(|(low, high)| vec![(low.max(left), p.y), (high, p.y)]);
                let upright = p.y_interval.map(|(low, high)| vec![(p.x, low), (p.x, high)]);
                across.into_iter().chain(upright)
            });
            chart.draw_series(bars.map(|bar| PathElement::new(bar, color.mix(0.45).stroke_width(3))))?;
            let dots = points.clone().filter(|_| dotted);
            chart.draw_series(dots.map(|p| Circle::new((p.x, p.y), 6, color.filled())))?;
            let marked = points.filter(|p| p.marked);
            chart.draw_series(marked.map(|p| Circle::new((p.x, p.y), 13, color.stroke_width(3))))?;
            spots.extend(
                spread(&curve.points, DOTS)
                    .map(|p| Spot { at: chart.backend_coord(&(p.x, p.y)), text: curve.tells(p) }),
            );
        }
        Ok(spots)
    }
}

impl Curve {
    fn tells(&self, point: &CurvePoint) -> String {
        format!("{}, {}: {} at {}", self.label, point.label, number(point.y), number(point.x))
    }
}
